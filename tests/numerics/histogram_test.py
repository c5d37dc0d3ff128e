"""Counts of 16-bit fates, against what NumPy and ml_dtypes really round to."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mp_loop.numerics import histogram

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
EVERY_PATTERN = np.arange(2**16).astype(np.uint16)


@tf.function(
    input_signature=[tf.TensorSpec([None], tf.float32)],
)
def traced(x):
    return histogram.histogram(x)


def numbers(values):
    return histogram.Numbers(traced(values).numpy())


def fates(values, kind, scale):
    """(underflows, subnormals, overflows) by really rounding, in float64."""
    values = values[np.isfinite(values) & (values != 0)].astype(np.float64)
    scaled = np.ldexp(values, scale)
    with np.errstate(over="ignore"):
        stored = scaled.astype(DTYPES[kind.name]).astype(np.float64)
    below = np.abs(scaled) < 2.0**kind.normal
    return (
        int((stored == 0).sum()),
        int((below & (stored != 0)).sum()),
        int(np.isinf(stored).sum()),
    )


def found(values, kind, scale):
    these = numbers(values)
    return (
        these.underflows(kind, scale),
        these.subnormals(kind, scale),
        these.overflows(kind, scale),
    )


# Patterns near the borders of both formats, and any other.
borders = [
    pattern + nearby
    for pattern in (
        *np.ldexp(np.float32(1), [-149, -134, -133, -126, -25, -24, -14, 127])
        .astype(np.float32)
        .view(np.int32)
        .tolist(),
        *np.array([65504, 65520, 3.3895e38, 3.4e38], np.float32)
        .view(np.int32)
        .tolist(),
    )
    for nearby in (-1, 0, 1)
]
patterns = st.one_of(st.sampled_from(borders), st.integers(0, 2**32 - 1))


def as_float32(words):
    return np.array(words, np.uint32).view(np.float32)


@given(
    words=st.lists(patterns, max_size=40),
    scale=st.integers(-40, 40),
    kind=st.sampled_from([histogram.FLOAT16, histogram.BFLOAT16]),
)
@settings(max_examples=150, deadline=None)
def test_fates_are_those_of_rounding(words, scale, kind):
    values = as_float32(words)
    # Not a float64 that ml_dtypes would round twice (it goes through float32).
    if kind is histogram.BFLOAT16:
        scale = 0
    assert found(values, kind, scale) == fates(values, kind, scale)


@given(words=st.lists(patterns, max_size=40))
@settings(max_examples=100, deadline=None)
def test_counts_are_numpys(words):
    values = as_float32(words)
    these = numbers(values)
    finite = values[np.isfinite(values) & (values != 0)].astype(np.float64)
    _, exponents = np.frexp(np.abs(finite))
    expected = {int(e) - 1: int((exponents == e).sum()) for e in set(exponents)}
    assert these.exponents == expected
    assert these.count == len(values)
    assert these.zeros == (values == 0).sum()
    assert these.inf == np.isinf(values).sum()
    assert these.nan == np.isnan(values).sum()
    assert histogram.not_finite(values).numpy().tolist() == [these.inf, these.nan]
    expected = np.abs(finite).max() if len(finite) else 0
    assert histogram.largest(values).numpy() == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pattern_of_16_bits_is_counted_as_itself(dtype):
    values = EVERY_PATTERN.view(DTYPES[dtype])
    narrow = histogram.histogram(tf.constant(values))
    wide = histogram.histogram(values.astype(np.float32))
    np.testing.assert_array_equal(narrow, wide)
    these = histogram.Numbers(narrow.numpy())
    kind = histogram.FORMATS[dtype]
    # What is stored already neither underflows nor overflows.
    assert these.underflows(kind) == these.overflows(kind) == 0
    assert (these.zeros, these.inf) == (2, 2)
    assert these.subnormals(kind) == 2 * (2 ** (kind.bits - 1) - 1)
    assert histogram.largest(tf.constant(values)).numpy() == kind.max


@pytest.mark.parametrize("scale", range(-30, 31, 6))
def test_every_float16_times_a_scale(scale):
    values = EVERY_PATTERN.view(np.float16).astype(np.float32)
    assert found(values, histogram.FLOAT16, scale) == fates(
        values, histogram.FLOAT16, scale
    )


@given(
    words=st.lists(patterns, min_size=1, max_size=30),
    share=st.sampled_from([0.001, 0.01, 0.1, 0.5]),
)
@settings(max_examples=100, deadline=None)
def test_the_range_of_scales_is_the_widest(words, share):
    these, kind = numbers(as_float32(words)), histogram.FLOAT16
    if not these.nonzero:
        assert these.scales(kind, share) is None
        return
    low, high = these.scales(kind, share)
    allowed = share * these.nonzero
    assert these.underflows(kind, low) < allowed <= these.underflows(kind, low - 1)
    assert these.overflows(kind, high) == 0 < these.overflows(kind, high + 1)


@pytest.mark.parametrize(
    ("magnitude", "scale", "expected"),
    [
        (65504, 1, 0),
        (65504 / 4, 1, 2),
        (65504, 4, -2),
        (1, 65504, 0),
        (2**-140, 1, 156),
    ],
    ids=["full", "two left", "two over", "scaled", "subnormal"],
)
def test_headroom_is_in_powers_of_two(magnitude, scale, expected):
    measured = histogram.headroom(magnitude, histogram.FLOAT16, scale)
    assert measured == pytest.approx(expected, abs=1e-3)
    assert histogram.headroom(0.0, histogram.FLOAT16) == np.inf


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
    counts = histogram.lost_updates(before, after, tf.as_dtype(dtype))
    assert counts.numpy().tolist() == expected
    # Below a quarter of a unit nothing is ever seen.
    assert expected[2] > 0.3 * expected[0]


def test_a_dtype_that_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match=r"`tensor` \(int32\) must be float32"):
        histogram.histogram(tf.constant([1]))


def test_ranges_intersect():
    assert histogram.common_scales([(0, 20), None, (5, 30)]) == (5, 20)
    assert histogram.common_scales([(0, 3), (5, 30)]) == (5, 3)
    assert histogram.common_scales([None]) is None
