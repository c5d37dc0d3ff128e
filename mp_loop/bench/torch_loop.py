"""The arm of the benchmark that runs on PyTorch, as its users would write it.

Eager mode, channels last, `torch.autocast` and, for float16, `GradScaler`; with the
option "compile" `torch.compile` of model and loss, and fused Adam. PyTorch comes with
the extra `peers`; TensorFlow is not imported.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from mp_loop.bench import tasks, torch_models, workloads


def make(task: tasks.Task, small_first: bool) -> workloads.Program:
    """Builds the arm.

    Args:
      task: of the loop "torch".
      small_first: whether a call for one step takes it on a single example.
    """
    torch.manual_seed(0)
    precision, options = task.arm.precision, task.arm.options
    device = "cuda" if torch.cuda.is_available() else "cpu"
    compiled = "compile" in options
    torch.backends.cuda.matmul.allow_tf32 = "tf32" in options
    torch.backends.cudnn.allow_tf32 = "tf32" in options
    model = torch_models.build_model(task.workload)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(
        model.parameters(), workloads.LEARNING_RATE, eps=1e-7, fused=compiled or None
    )
    scaler = torch.amp.GradScaler(device, enabled=precision == "float16")

    def loss_of(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        dtype = getattr(torch, precision)
        with torch.autocast(device, dtype, enabled=precision != "float32"):
            logits = model(inputs)  # of each position too, in a model of tokens
            return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())

    if compiled:  # for each size of a batch, as XLA does
        loss_of = torch.compile(loss_of, dynamic=False)

    whole = batch(task, task.batch_size, device)
    single = batch(task, 1, device) if small_first else whole

    def run(count: int) -> None:
        for _ in range(count):
            waiting = single if count == 1 else whole
            inputs, labels = (x.to(device, non_blocking=True) for x in waiting)
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(inputs, labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        loss.item()  # waits for the device

    return workloads.Program(run)


def batch(task: tasks.Task, size: int, device: str) -> tuple[torch.Tensor, ...]:
    """Makes inputs and labels, where they wait for a step.

    Args:
      task: whose workload it is, and whether it waits on the device.
      size: examples.
      device: "cpu", or "cuda", for which what waits in the host's memory is pinned.
    """
    inputs, labels = map(torch.from_numpy, task.workload.batch(size))
    if inputs.ndim == 4:  # [n, h, w, c] is [n, c, h, w] with channels last
        inputs = inputs.permute(0, 3, 1, 2)
    pair = (inputs, labels.long())
    if task.on_device:
        return tuple(x.to(device) for x in pair)
    return tuple(x.pin_memory() for x in pair) if device == "cuda" else pair
