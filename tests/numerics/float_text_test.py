"""Values that a user types are read exactly."""

import math
from fractions import Fraction

import pytest

from mp_loop.numerics import float_text

VALUES = {
    "0.1": Fraction(1, 10),
    "-1e-8": Fraction(-1, 10**8),
    ".5": Fraction(1, 2),
    "2^-24": Fraction(1, 2**24),
    "-2**3": Fraction(-8),
    "10^3": Fraction(1000),
    "1/3": Fraction(1, 3),
    "inf": math.inf,
    "-inf": -math.inf,
    "-0": -0.0,
    "nan": math.nan,
    "float16:0x7bff": Fraction(65504),
    "float16:0xfc00": -math.inf,
    "float8_e4m3fn:0b01111110": Fraction(448),
}


@pytest.mark.parametrize("word", VALUES)
def test_words_are_read_exactly(word):
    value, expected = float_text.parse(word), VALUES[word]
    assert type(value) is type(expected)
    assert str(value) == str(expected)
