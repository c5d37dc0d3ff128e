"""Sums and copies that keep every bit."""

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.distributed import collectives
from tests.support import two_devices


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "int64"]
)
def test_bits_survive_the_way(dtype):
    values = [0.0, -0.0, 1.5, -3.0, 2.0**-14, 65504.0]
    values += [] if dtype == "int64" else [np.inf, -np.inf, np.nan]
    values = tf.cast(values, dtype)
    there = collectives.from_bits(collectives.to_bits(values), values.dtype)
    assert two_devices.bits([there]) == two_devices.bits([values])
