"""Data that are held exist once."""

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.data import decoding


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64])
def test_a_tensor_shares_the_memory_of_an_array(dtype):
    values = decoding.empty((5, 3), dtype)
    values[:] = np.arange(15).reshape(5, 3)
    tensor = decoding.in_host_memory(values)
    assert tensor.dtype == tf.as_dtype(dtype) and "CPU" in tensor.device
    np.testing.assert_array_equal(tf.gather(tensor, [4, 0]), values[[4, 0]])
    assert np.shares_memory(np.asarray(tensor), values)


def test_any_array_becomes_a_tensor():
    values = np.arange(24).reshape(4, 6)[::2, 1:]
    np.testing.assert_array_equal(decoding.in_host_memory(values), values)
    words = np.array([b"a", b"bc"], object)
    assert decoding.in_host_memory(words).numpy().tolist() == [b"a", b"bc"]
