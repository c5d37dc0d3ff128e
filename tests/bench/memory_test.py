"""Memory of this process, and copies to a GPU."""

import numpy as np

from mp_loop.bench import keras_loops, memory


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


def test_without_a_gpu_nothing_is_copied():
    program = keras_loops.make("custom", "bfloat16", (), "mlp_tiny", 4)
    program.run(1)
    assert memory.host_copies(program.run) == 0
