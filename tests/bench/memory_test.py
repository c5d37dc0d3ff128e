"""Memory of this process, and copies to a GPU."""

import numpy as np

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


def test_without_a_gpu_there_are_no_copies_to_be_counted():
    calls = []
    assert memory.host_copies(calls.append) is None
    assert calls == [3]
