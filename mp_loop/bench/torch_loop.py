"""The arm of the benchmark that runs on PyTorch, as its users would write it.

Eager mode, channels last, `torch.autocast` and, for float16, `GradScaler`. PyTorch
comes with the extra `peers`; TensorFlow is not imported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from mp_loop.bench import torch_models, workloads


def make(precision: str, workload: str, batch_size: int, **_: Any) -> workloads.Program:
    """Builds the arm. A call for one step takes it on a single example.

    Args:
      precision: "float16", "bfloat16" or "float32".
      workload: a key of `workloads.WORKLOADS`, not one of updates.
      batch_size: examples of a step.
    """
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = torch_models.build_model(workload)
    workload = workloads.WORKLOADS[workload]
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), workloads.LEARNING_RATE, eps=1e-7)
    scaler = torch.amp.GradScaler(device, enabled=precision == "float16")
    dtype = getattr(torch, precision)

    def to_torch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, labels = map(torch.from_numpy, workload.batch(size))
        if inputs.ndim == 4:  # [n, h, w, c] is [n, c, h, w] with channels last
            inputs = inputs.permute(0, 3, 1, 2)
        return inputs.to(device), labels.long().to(device)

    single, whole = to_torch(1), to_torch(batch_size)

    def run(count: int) -> None:
        inputs, labels = single if count == 1 else whole
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, dtype, enabled=precision != "float32"):
                loss = functional.cross_entropy(model(inputs), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        loss.item()  # waits for the device

    return workloads.Program(run)
