"""The models of the benchmark's workloads in PyTorch.

They have the architectures, and as many parameters, as those of
`mp_loop.bench.keras_models`. PyTorch comes with the extra `peers`; TensorFlow is not
imported.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from mp_loop.bench import workloads


def build_model(name: str) -> nn.Module:
    """Builds the model of a workload.

    Args:
      name: a key of `workloads.WORKLOADS`, not one of updates.
    """
    workload = workloads.WORKLOADS[name]
    if name == "vit":
        stem = nn.Sequential(nn.Conv2d(3, 64, 4, 4), nn.Flatten(2), _Transposed())
        return _encoder(stem, 64, 64, 4, workload.classes)
    if workload.vocabulary:
        width = workload.width
        stem = nn.Embedding(workload.vocabulary, width)
        return _encoder(
            stem, workload.shape[0], width, workload.layers, workload.classes
        )
    if len(workload.shape) == 1:
        widths = [*workload.shape, *[workload.width] * workload.layers]
        hidden = [
            layer
            for a, b in zip(widths, widths[1:], strict=False)
            for layer in (nn.Linear(a, b), nn.ReLU())
        ]
        return nn.Sequential(*hidden, nn.Linear(widths[-1], workload.classes))
    make = {"cnn": _cnn, "resnet20": _resnet20, "resnet50": _resnet50}[name]
    return make(workload.classes)


class _Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


class _Positions(nn.Module):
    def __init__(self, positions: int, width: int):
        super().__init__()
        self.embedding = nn.Parameter(0.02 * torch.randn(positions, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.embedding


class _Mean(nn.Module):
    """The mean over positions or pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) if x.ndim == 4 else x.mean(1)


class _Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.projection = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:2], 3, workloads.HEADS, -1)
        q, k, v = self.projection(x).reshape(shape).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.output(y.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """A pre-norm block of a Transformer."""

    def __init__(self, width: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attention = _Attention(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


def _encoder(
    stem: nn.Module, positions: int, width: int, blocks: int, classes: int
) -> nn.Module:
    return nn.Sequential(
        stem,
        _Positions(positions, width),
        *(_Block(width) for _ in range(blocks)),
        nn.LayerNorm(width, eps=1e-6),
        _Mean(),
        nn.Linear(width, classes),
    )


def _conv_bn(
    inputs: int, outputs: int, size: int, stride: int = 1, bias: bool = False
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=bias),
        nn.BatchNorm2d(outputs, eps=1e-3),
    )


def _cnn(classes: int) -> nn.Module:
    widths = [3, 32, 64, 64, 128, 128]
    layers = []
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        pool = [nn.MaxPool2d(2)] if i in (1, 3) else []
        layers += [*pool, _conv_bn(a, b, 3), nn.ReLU()]
    return nn.Sequential(*layers, _Mean(), nn.Linear(128, classes))


class _Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def _resnet20(classes: int) -> nn.Module:
    layers, inputs = [_conv_bn(3, 16, 3), nn.ReLU()], 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range(3):
            stride = 2 if stage and not block else 1
            body = nn.Sequential(
                _conv_bn(inputs, width, 3, stride), nn.ReLU(), _conv_bn(width, width, 3)
            )
            change = _conv_bn(inputs, width, 1, stride) if stride > 1 else nn.Identity()
            layers.append(_Residual(body, change))
            inputs = width
    return nn.Sequential(*layers, _Mean(), nn.Linear(64, classes))


def _resnet50(classes: int) -> nn.Module:
    """He et al. 2016 with biases, and the stride in the first 1x1, as Keras'."""
    pool = nn.MaxPool2d(3, 2, 1)
    layers, inputs = [_conv_bn(3, 64, 7, 2, bias=True), nn.ReLU(), pool], 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            body = nn.Sequential(
                _conv_bn(inputs, width, 1, stride, bias=True),
                nn.ReLU(),
                _conv_bn(width, width, 3, bias=True),
                nn.ReLU(),
                _conv_bn(width, 4 * width, 1, bias=True),
            )
            change = nn.Identity()
            if not block:
                change = _conv_bn(inputs, 4 * width, 1, stride, bias=True)
            layers.append(_Residual(body, change))
            inputs = 4 * width
    return nn.Sequential(*layers, _Mean(), nn.Linear(inputs, classes))
