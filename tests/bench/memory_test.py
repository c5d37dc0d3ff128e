"""Memory of this process, and copies to a GPU."""

import contextlib
import pathlib
import sys
import types

import numpy as np
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from mp_loop.bench import memory


def test_the_peak_is_what_was_held_since_it_was_reset():
    used = memory.HostMemory()
    used.reset_peak()
    before = used.held()
    block = np.ones(64 << 20, np.uint8)
    assert used.held() - before > block.nbytes // 2
    del block
    assert used.peak() - before > 32 << 20
    used.reset_peak()
    assert used.peak() - before < 32 << 20


def test_without_a_gpu_it_is_the_process_that_is_measured():
    assert isinstance(memory.of_framework("tensorflow"), memory.HostMemory)


def test_what_a_step_takes_of_the_allocator(monkeypatch):
    x = tf.ones([2**20])  # 4 MiB

    def run(steps):
        for _ in range(steps):
            tf.reduce_sum(x + tf.sqrt(x))

    taken = memory.allocated(run, "tensorflow")
    if taken is not None:  # it is counted with oneDNN alone
        assert 8 << 20 <= taken < 16 << 20
    assert memory.allocated(run, "torch") is None

    def not_counted(device):
        raise ValueError(f"Allocator stats not available for device '{device}'")

    monkeypatch.setattr(tf.config.experimental, "reset_memory_stats", not_counted)
    assert memory.allocated(run, "tensorflow") is None


def test_without_a_gpu_there_are_no_copies_to_be_counted():
    calls = []
    assert memory.host_copies(calls.append) is None
    assert calls == [3]


def test_copies_are_counted_where_the_profiler_sees_the_gpu(monkeypatch):
    @contextlib.contextmanager
    def profile(folder):
        """Writes what TensorFlow's profiler does of a GPU."""
        yield
        space = xplane_pb2.XSpace()
        space.planes.add(name="/host:CPU")
        plane = space.planes.add(name="/device:GPU:0")
        line = plane.lines.add()
        for number, name in enumerate(("MemcpyHtoD", "gemm", "MemcpyDtoH")):
            plane.event_metadata[number].name = name
            line.events.add(metadata_id=number)
        path = pathlib.Path(folder, "a.xplane.pb")
        path.write_bytes(space.SerializeToString())

    monkeypatch.setattr(tf.profiler.experimental, "Profile", profile)
    assert memory.host_copies(lambda steps: None) == 2


def test_of_pytorch_it_is_the_allocators_too(monkeypatch):
    cuda = types.SimpleNamespace(
        is_available=lambda: True,
        memory_allocated=lambda: 3,
        max_memory_allocated=lambda: 5,
        reset_peak_memory_stats=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    used = memory.of_framework("torch")
    used.reset_peak()
    assert used.falls and (used.held(), used.peak()) == (3, 5)
