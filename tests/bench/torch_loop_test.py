"""The benchmark's arm on PyTorch."""

import pytest

from mp_loop.bench import tasks, workloads
from mp_loop.config import comparison_arms


@pytest.mark.peers
@pytest.mark.parametrize("on_device", [False, True])
def test_a_batch_waits_in_pinned_memory_or_on_the_gpu(on_device, monkeypatch):
    torch = pytest.importorskip("torch")
    from mp_loop.bench import torch_loop

    done = []

    def pin(x):
        done.append("pinned")
        return x

    def move(x, device):
        done.append(device)
        return x

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", move)
    workload = workloads.WORKLOADS["cnn"]
    task = tasks.Task(comparison_arms.Arm("torch", "float32"), workload, 2, on_device)
    inputs, labels = torch_loop.batch(task, 2, "cuda")
    assert done == (["cuda"] if on_device else ["pinned"]) * 2
    assert inputs.shape == (2, 3, 32, 32) and labels.shape == (2,)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
