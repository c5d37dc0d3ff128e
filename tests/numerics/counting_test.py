"""What is counted on the device."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from mp_loop.numerics import counting

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES)
def test_lost_updates_are_those_that_16_bits_do_not_show(dtype):
    generator = np.random.default_rng(0)
    before = generator.normal(size=4096).astype(np.float32)
    update = before * np.ldexp(np.float32(1), generator.integers(-20, 0, 4096))
    update[:100] = 0
    after = (before + update).astype(np.float32)
    update = after - before
    narrow = DTYPES[dtype]
    held = before.astype(narrow)
    moved = (held.astype(np.float32) + update).astype(narrow)
    changed = update != 0
    limit = 2.0**-11 if dtype == "float16" else 2.0**-8
    small = changed & (np.abs(update) < limit * np.abs(before))
    expected = [changed.sum(), small.sum(), (changed & (moved == held)).sum()]
    counts = counting.lost_updates(before, after, tf.as_dtype(dtype))
    assert counts.numpy().tolist() == expected
    # Below a quarter of a unit nothing is ever seen.
    assert expected[2] > 0.3 * expected[0]


def test_a_dtype_that_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match=r"`tensor` \(int32\) must be float32"):
        counting.magnitudes(tf.constant([1]))
