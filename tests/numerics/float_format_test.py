"""Floating-point formats, against NumPy and ml_dtypes, pattern by pattern."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from mp_loop.numerics import float_format, float_text

DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
SMALL = [name for name in float_format.FORMATS if name != "float32"]


def patterns(name):
    """Every pattern of a small type; of float32, random ones and the edges."""
    form = float_format.FORMATS[name]
    if form.bits <= 16:
        return np.arange(2**form.bits)
    generator = np.random.default_rng(0)
    edges = [0, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x80000000]
    return np.concatenate([edges, generator.integers(0, 2**32, 2000)])


def numbers(name, bits):
    """The patterns as NumPy's or ml_dtypes' numbers."""
    unsigned = np.dtype(f"uint{float_format.FORMATS[name].bits}")
    return np.asarray(bits).astype(unsigned).view(DTYPES[name])


def same(ours, theirs):
    """Equal, the sign of zero and NaN included."""
    theirs = float(theirs)
    if math.isnan(theirs):
        return isinstance(ours, float) and math.isnan(ours)
    signs = math.copysign(1, ours) == math.copysign(1, theirs)
    return signs and (ours == theirs)


@pytest.mark.parametrize("name", float_format.FORMATS)
def test_every_pattern_is_decoded_and_encoded(name):
    form = float_format.FORMATS[name]
    bits = patterns(name)
    for pattern, number in zip(bits.tolist(), numbers(name, bits), strict=True):
        sign, magnitude = divmod(pattern, 2 ** (form.bits - 1))
        value = form.decode(magnitude, sign)
        assert same(value, number), hex(pattern)
        if not math.isnan(value):
            assert form.encode(value) == (sign, magnitude), hex(pattern)


@pytest.mark.parametrize("name", SMALL)
def test_rounding_is_that_of_the_type(name):
    form, dtype = float_format.FORMATS[name], DTYPES[name]
    top = form.bits - 1 - form.mantissa_bits
    generator = np.random.default_rng(1)
    spread = generator.uniform(-(2 ** (top - 1)) - 9, 2 ** (top - 1) + 1, 2000)
    random = np.ldexp(generator.normal(size=2000), spread.astype(int))
    stored = numbers(name, patterns(name)[: form.overflow]).astype(np.float64)
    stored = stored[:: max(1, len(stored) // 2000)]
    with np.errstate(over="ignore", under="ignore"):
        # Ties, and one float32 beside them; past the largest number as well.
        ties = ((stored[1:] + stored[:-1]) / 2).astype(np.float32)
        beyond = np.float32([float(form.largest) * f for f in (1.01, 1.04, 1.1, 2)])
        around = [np.nextafter(ties, np.float32(x)) for x in (-np.inf, np.inf)]
        values = np.concatenate([random.astype(np.float32), ties, *around, beyond])
        values = values[np.isfinite(values)]
        theirs = values.astype(dtype)
    for value, expected in zip(values.tolist(), theirs, strict=True):
        number = Fraction(value) if value else value
        assert same(form.store(number), expected), value


def test_a_value_is_rounded_once():
    just_above_a_tie = 1 + Fraction(1, 2**8) + Fraction(1, 2**60)
    assert float_format.FORMATS["bfloat16"].store(just_above_a_tie) == 1 + Fraction(
        1, 2**7
    )
    through_float32 = np.float32(float(just_above_a_tie)).astype(ml_dtypes.bfloat16)
    assert float(through_float32) == 1.0  # what two roundings would give


@pytest.mark.parametrize("name", float_format.FORMATS)
def test_the_ranges_are_those_of_the_type(name):
    form, info = float_format.FORMATS[name], ml_dtypes.finfo(DTYPES[name])
    assert form.largest == float(info.max)
    assert form.smallest_normal == float(info.smallest_normal)
    assert form.smallest == float(info.smallest_subnormal)
    assert (form.bits, form.mantissa_bits) == (info.bits, info.nmant)


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_neighbours_are_the_next_numbers(name):
    form, dtype = float_format.FORMATS[name], DTYPES[name]
    for number in numbers(name, patterns(name)[:: 1 if name == "float32" else 31]):
        if np.isnan(number):
            continue
        value = float(number)
        exact = Fraction(value) if math.isfinite(value) and value else value
        below, above = form.neighbours(exact)
        with np.errstate(over="ignore", under="ignore"):
            assert below is None or below == float(np.nextafter(number, dtype(-np.inf)))
            assert above is None or above == float(np.nextafter(number, dtype(np.inf)))
        assert (below is None, above is None) == (value == -np.inf, value == np.inf)


@pytest.mark.parametrize("word", ["1", "0.1", "-0.1", "1e-5", "65472", "6e-8"])
def test_the_smallest_change_is_the_smallest_that_changes(word):
    form = float_format.FORMATS["float16"]
    weight = form.store(float_text.parse(word))
    least, also = form.smallest_change(weight)
    sign = 1 if weight > 0 else -1
    less, more = least * Fraction(999, 1000), least * Fraction(1001, 1000)
    assert form.store(weight + sign * less) == weight
    assert form.store(weight + sign * more) != weight
    assert (form.store(weight + sign * least) != weight) == also


@pytest.mark.parametrize("word", ["1e-8", "1", "-3", "65504", "65519", "65521", "1e30"])
def test_the_scales_that_keep_a_gradient(word):
    form, value = float_format.FORMATS["float16"], float_text.parse(word)
    low, high = form.lossless_scales(value)

    def is_kept(power):
        scaled = abs(value) * Fraction(2) ** power
        return scaled >= form.smallest_normal and form.store(scaled) <= form.largest

    assert [power for power in range(low - 2, high + 3) if is_kept(power)] == list(
        range(low, high + 1)
    )
