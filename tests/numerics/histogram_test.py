"""Counts of 16-bit fates, against what NumPy and ml_dtypes really round to."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mp_loop.numerics import counting, float_format, histogram

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
EVERY_PATTERN = np.arange(2**16).astype(np.uint16)


@tf.function(
    input_signature=[tf.TensorSpec([None], tf.float32)],
)
def traced(x):
    return counting.magnitudes(x)


def numbers(values):
    return histogram.Histogram(traced(values).numpy())


def fates(values, form, scale):
    """(underflows, subnormals, overflows) by really rounding, in float64."""
    values = values[np.isfinite(values) & (values != 0)].astype(np.float64)
    scaled = np.ldexp(values, scale)
    with np.errstate(over="ignore"):
        stored = scaled.astype(DTYPES[form.name]).astype(np.float64)
    below = np.abs(scaled) < 2.0**form.normal_exponent
    return (
        int((stored == 0).sum()),
        int((below & (stored != 0)).sum()),
        int(np.isinf(stored).sum()),
    )


def found(values, form, scale):
    these = numbers(values)
    return (
        these.underflows(form, scale),
        these.subnormals(form, scale),
        these.overflows(form, scale),
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
    form=st.sampled_from([float_format.FLOAT16, float_format.BFLOAT16]),
)
@settings(max_examples=150, deadline=None)
def test_fates_are_those_of_rounding(words, scale, form):
    values = as_float32(words)
    # Not a float64 that ml_dtypes would round twice (it goes through float32).
    if form is float_format.BFLOAT16:
        scale = 0
    assert found(values, form, scale) == fates(values, form, scale)


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
    assert counting.nonfinite(values).numpy().tolist() == [these.inf, these.nan]
    expected = np.abs(finite).max() if len(finite) else 0
    assert counting.largest(values).numpy() == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pattern_of_16_bits_is_counted_as_itself(dtype):
    values = EVERY_PATTERN.view(DTYPES[dtype])
    narrow = counting.magnitudes(tf.constant(values))
    wide = counting.magnitudes(values.astype(np.float32))
    np.testing.assert_array_equal(narrow, wide)
    these = histogram.Histogram(narrow.numpy())
    form = float_format.FORMATS[dtype]
    # What is stored already neither underflows nor overflows.
    assert these.underflows(form) == these.overflows(form) == 0
    assert (these.zeros, these.inf) == (2, 2)
    assert these.subnormals(form) == 2 * (2**form.mantissa_bits - 1)
    assert counting.largest(tf.constant(values)).numpy() == form.largest


@pytest.mark.parametrize("scale", range(-30, 31, 6))
def test_every_float16_times_a_scale(scale):
    values = EVERY_PATTERN.view(np.float16).astype(np.float32)
    assert found(values, float_format.FLOAT16, scale) == fates(
        values, float_format.FLOAT16, scale
    )


@given(
    words=st.lists(patterns, min_size=1, max_size=30),
    share=st.sampled_from([0.001, 0.01, 0.1, 0.5]),
)
@settings(max_examples=100, deadline=None)
def test_the_range_of_scales_is_the_widest(words, share):
    these, form = numbers(as_float32(words)), float_format.FLOAT16
    if not these.nonzero:
        assert these.scales(form, share) is None
        return
    low, high = these.scales(form, share)
    allowed = share * these.nonzero
    assert these.underflows(form, low) < allowed <= these.underflows(form, low - 1)
    assert these.overflows(form, high) == 0 < these.overflows(form, high + 1)


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
    measured = histogram.headroom(magnitude, float_format.FLOAT16, scale)
    assert measured == pytest.approx(expected, abs=1e-3)
    assert histogram.headroom(0.0, float_format.FLOAT16) == np.inf


def test_ranges_intersect():
    assert histogram.common_scales([(0, 20), None, (5, 30)]) == (5, 20)
    assert histogram.common_scales([(0, 3), (5, 30)]) == (5, 3)
    assert histogram.common_scales([None]) is None
