"""The models of the benchmark's workloads in PyTorch.

They have the architectures, and as many parameters, as those of
`mp_loop.bench.keras_models`. PyTorch comes with the extra `peers`; TensorFlow is not
imported.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from mp_loop.bench import workloads


def build_model(workload: workloads.Workload) -> nn.Module:
    """Builds the model of a workload that has a peer."""
    return _NETWORKS[workload.network](workload)


def _mlp(workload: workloads.Workload) -> nn.Module:
    widths = [*workload.shape, *[workload.width] * workload.layers]
    hidden = [
        layer
        for a, b in zip(widths, widths[1:], strict=False)
        for layer in (nn.Linear(a, b), nn.ReLU())
    ]
    return nn.Sequential(*hidden, nn.Linear(widths[-1], workload.classes))


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


class _First(nn.Module):
    """The first position."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0]


class _ClassToken(nn.Module):
    """Puts a learned vector in front of the positions."""

    def __init__(self, width: int):
        super().__init__()
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1)


class _Vocabulary(nn.Module):
    """The logits of tokens, from the table that they were embedded with."""

    def __init__(self, table: nn.Embedding):
        super().__init__()
        self.table = table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.table.weight)


class _Attention(nn.Module):
    def __init__(
        self, width: int, heads: int, causal: bool = False, dropout: float = 0.0
    ):
        super().__init__()
        self.projection = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.heads, self.causal, self.dropout = heads, causal, dropout

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        shape = (*x.shape[:2], 3, self.heads, -1)
        q, k, v = self.projection(x).reshape(shape).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(
            q, k, v, mask, self.dropout, is_causal=self.causal
        )
        return self.output(y.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """A pre-norm block of a Transformer; a causal one is GPT-2's."""

    def __init__(self, width: int, heads: int, causal: bool = False):
        super().__init__()
        epsilon, gelu = (1e-5, "tanh") if causal else (1e-6, "none")
        self.norms = nn.ModuleList(nn.LayerNorm(width, epsilon) for _ in range(2))
        self.attention = _Attention(width, heads, causal)
        self.mlp = _dense(width, gelu)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


def _dense(width: int, gelu: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, 4 * width), nn.GELU(gelu), nn.Linear(4 * width, width)
    )


def _transformer(
    workload: workloads.Workload, stem: Sequence[nn.Module], causal: bool = False
) -> list[nn.Module]:
    """The blocks between what embeds and what classifies."""
    width = workload.width
    blocks = (_Block(width, workload.heads, causal) for _ in range(workload.layers))
    return [*stem, *blocks, nn.LayerNorm(width, 1e-5 if causal else 1e-6)]


def _encoder(workload: workloads.Workload) -> nn.Module:
    width = workload.width
    stem = [nn.Embedding(workload.vocabulary, width)]
    stem += [_Positions(workload.shape[0], width)]
    layers = _transformer(workload, stem)
    return nn.Sequential(*layers, _Mean(), nn.Linear(width, workload.classes))


def _patches(workload: workloads.Workload) -> tuple[list[nn.Module], int]:
    """What embeds the patches of images, and how many there are."""
    (height, across, channels), patch = workload.shape, workload.patch
    convolution = nn.Conv2d(channels, workload.width, patch, patch)
    count = (height // patch) * (across // patch)
    return [convolution, nn.Flatten(2), _Transposed()], count


def _vit(workload: workloads.Workload) -> nn.Module:
    """Classified by the mean over patches."""
    patches, count = _patches(workload)
    layers = _transformer(workload, [*patches, _Positions(count, workload.width)])
    return nn.Sequential(*layers, _Mean(), nn.Linear(workload.width, workload.classes))


def _hub_vit(workload: workloads.Workload) -> nn.Module:
    """Classified by a class token."""
    width = workload.width
    patches, count = _patches(workload)
    stem = [*patches, _ClassToken(width), _Positions(1 + count, width)]
    layers = _transformer(workload, stem)
    return nn.Sequential(*layers, _First(), nn.Linear(width, workload.classes))


def _gpt2(workload: workloads.Workload) -> nn.Module:
    width = workload.width
    table = nn.Embedding(workload.vocabulary, width)
    nn.init.normal_(table.weight, std=0.02)
    stem = [table, _Positions(workload.shape[0], width)]
    layers = _transformer(workload, stem, causal=True)
    if workload.predicts_tokens:
        return nn.Sequential(*layers, _Vocabulary(table))
    return nn.Sequential(*layers, _Mean(), nn.Linear(width, workload.classes))


class _BertBlock(nn.Module):
    """A post-norm block with dropout."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attention = _Attention(width, heads, dropout=dropout)
        self.mlp = _dense(width, "tanh")
        self.norms = nn.ModuleList(nn.LayerNorm(width, 1e-12) for _ in range(2))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norms[0](x + self.drop(self.attention(x, mask)))
        return self.norms[1](x + self.drop(self.mlp(x)))


class _Bert(nn.Module):
    """Devlin et al. 2019, with a classifier on the mean; token 0 is padding."""

    def __init__(self, workload: workloads.Workload, dropout: float = 0.1):
        super().__init__()
        width = workload.width
        self.tokens = nn.Embedding(workload.vocabulary, width)
        self.positions = nn.Embedding(512, width)
        self.segments = nn.Embedding(2, width)
        self.norm, self.drop = nn.LayerNorm(width, 1e-12), nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            _BertBlock(width, workload.heads, dropout) for _ in range(workload.layers)
        )
        self.head = nn.Linear(width, workload.classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        kept = tokens != 0
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        x = self.drop(self.norm(x + self.segments(torch.zeros_like(tokens))))
        for block in self.blocks:
            x = block(x, kept[:, None, None])
        mean = (x * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
        return self.head(self.drop(mean))


def _conv_bn(
    inputs: int, outputs: int, size: int, stride: int = 1, bias: bool = False
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=bias),
        nn.BatchNorm2d(outputs, eps=1e-3),
    )


def _cnn(workload: workloads.Workload) -> nn.Module:
    widths = [3, 32, 64, 64, 128, 128]
    layers = []
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        pool = [nn.MaxPool2d(2)] if i in (1, 3) else []
        layers += [*pool, _conv_bn(a, b, 3), nn.ReLU()]
    return nn.Sequential(*layers, _Mean(), nn.Linear(128, workload.classes))


class _Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def _resnet20(workload: workloads.Workload) -> nn.Module:
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
    return nn.Sequential(*layers, _Mean(), nn.Linear(64, workload.classes))


def _resnet50(workload: workloads.Workload) -> nn.Module:
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
    return nn.Sequential(*layers, _Mean(), nn.Linear(inputs, workload.classes))


_NETWORKS = {
    "bert": _Bert,
    "cnn": _cnn,
    "encoder": _encoder,
    "gpt2": _gpt2,
    "hub_vit": _hub_vit,
    "mlp": _mlp,
    "resnet20": _resnet20,
    "resnet50": _resnet50,
    "vit_tiny": _vit,
}
