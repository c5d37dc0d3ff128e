"""The memory of a process or of its GPU, and what is copied between them.

    used = of_framework("tensorflow")
    used.reset_peak()
    ...
    used.peak() - used.held()

All numbers are bytes.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Protocol

from mp_loop.hardware import environment


class Memory(Protocol):
    """Memory in use, in bytes.

    Attributes:
      falls: whether `held` falls again to what it was before, after a step.
    """

    falls: bool

    def held(self) -> int:
        """What is held now."""

    def peak(self) -> int:
        """The most that was held since `reset_peak`."""

    def reset_peak(self) -> None:
        """Starts a new peak."""


class HostMemory:
    """The resident memory of this process."""

    falls = False  # what is freed stays with the process

    def held(self) -> int:
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def peak(self) -> int:
        return environment.peak_memory_bytes()

    def reset_peak(self) -> None:
        pathlib.Path("/proc/self/clear_refs").write_text("5")


class TensorFlowMemory:
    """What TensorFlow's allocator has given out of a device, XLA included."""

    falls = True

    def __init__(self, device: str = "GPU:0"):
        import tensorflow as tf

        self._device, self._memory = device, tf.config.experimental

    def held(self) -> int:
        return self._memory.get_memory_info(self._device)["current"]

    def peak(self) -> int:
        return self._memory.get_memory_info(self._device)["peak"]

    def reset_peak(self) -> None:
        self._memory.reset_memory_stats(self._device)


class TorchMemory:
    """What PyTorch's allocator has given out of the GPU."""

    falls = True

    def __init__(self):
        import torch

        self._memory = torch.cuda

    def held(self) -> int:
        return self._memory.memory_allocated()

    def peak(self) -> int:
        return self._memory.max_memory_allocated()

    def reset_peak(self) -> None:
        self._memory.reset_peak_memory_stats()


def of_framework(name: str) -> Memory:
    """Returns the memory that "tensorflow" or "torch" computes in on this machine."""
    if name == "torch":
        import torch

        return TorchMemory() if torch.cuda.is_available() else HostMemory()
    from mp_loop.hardware import devices

    return TensorFlowMemory() if devices.has_gpu() else HostMemory()


def allocated(run: Callable[[int], None], framework: str) -> int | None:
    """Measures what a step takes of TensorFlow's allocator for the processor.

    Unlike the memory of the process it holds neither compiled code nor what was freed.

    Args:
      run: takes a number of steps.
      framework: as for `of_framework`.

    Returns:
      Bytes; None where nobody counts them: PyTorch, and TensorFlow without oneDNN.
    """
    if framework != "tensorflow":
        return None
    used = TensorFlowMemory("CPU:0")
    try:
        used.reset_peak()
    except ValueError:
        return None
    before = used.held()
    run(3)
    return used.peak() - before


def host_copies(run: Callable[[int], None]) -> int | None:
    """Counts TensorFlow's copies between host and GPU in one call of three steps.

    Returns:
      How many; None where its profiler does not see the GPU.
    """
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            run(3)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    planes = [p for p in space.planes if p.name.startswith("/device:GPU")]
    names = [
        plane.event_metadata[event.metadata_id].name
        for plane in planes
        for line in plane.lines
        for event in line.events
    ]
    return sum("HtoD" in name or "DtoH" in name for name in names) if planes else None
