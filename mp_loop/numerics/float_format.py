"""Binary floating-point formats, in exact arithmetic.

    FLOAT16.store(Fraction(1, 10))     # the float16 number nearest to 0.1
    FLOAT16.largest                    # Fraction(65504, 1)
    FORMATS["bfloat16"].classify(Fraction(10) ** 39)     # "overflows to inf"

A value is exact until it is stored; it never passes through a float64. Needs
neither NumPy nor TensorFlow.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

Number = Fraction | float  # A float only for inf, -inf, NaN or -0.0.


@dataclasses.dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format: a sign bit, an exponent and a mantissa.

    The pattern of a number's magnitude, read as an integer, counts the numbers
    from 0 upwards, so that neighbours differ by one.

    Attributes:
      name: as in NumPy and ml_dtypes.
      exponent_bits: width of the exponent; the bias is that of IEEE 754.
      mantissa_bits: width of the mantissa, without the leading one.
      has_infinity: if false, only the last pattern is NaN, and overflow gives NaN.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    has_infinity: bool = True

    @property
    def bits(self) -> int:
        """Width of a number."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """The number that is subtracted from the stored exponent."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def overflow(self) -> int:
        """The pattern after the largest number: infinity, or NaN."""
        top = 2 ** (self.bits - 1) - 1
        return top + 1 - 2**self.mantissa_bits if self.has_infinity else top

    @property
    def largest(self) -> Fraction:
        """The largest finite number."""
        return self.decode(self.overflow - 1)

    @property
    def smallest_normal(self) -> Fraction:
        """The smallest number with all mantissa bits."""
        return self.decode(2**self.mantissa_bits)

    @property
    def smallest(self) -> Fraction:
        """The smallest positive number, a subnormal one."""
        return self.decode(1)

    @property
    def largest_exponent(self) -> int:
        """The binary exponent of the largest finite number."""
        return exponent_of(self.largest)

    @property
    def normal_exponent(self) -> int:
        """The binary exponent of the smallest normal number."""
        return 1 - self.bias

    @property
    def smallest_exponent(self) -> int:
        """The binary exponent of the smallest positive number."""
        return self.normal_exponent - self.mantissa_bits

    def encode(self, value: Number) -> tuple[int, int]:
        """Rounds to the nearest number, ties to even, as IEEE 754 does.

        Returns:
          The sign bit and the pattern of the magnitude.
        """
        if isinstance(value, float):
            sign = int(math.copysign(1, value) < 0)
            if math.isnan(value):
                top = self.overflow + self.has_infinity * 2 ** (self.mantissa_bits - 1)
                return sign, top
            return sign, 0 if value == 0 else self.overflow
        magnitude = abs(value)
        # Subnormal numbers share the exponent of the smallest normal ones.
        exponent = max(exponent_of(magnitude), self.normal_exponent)
        quantum = Fraction(2) ** (exponent - self.mantissa_bits)
        binade = (exponent - self.normal_exponent) << self.mantissa_bits
        pattern = binade + round(magnitude / quantum)
        return int(value < 0), min(pattern, self.overflow)

    def decode(self, pattern: int, sign: int = 0) -> Number:
        """Returns the number that a pattern represents."""
        if pattern >= self.overflow:
            infinite = self.has_infinity and pattern == self.overflow
            return math.copysign(math.inf if infinite else math.nan, -sign or 1)
        exponent, mantissa = divmod(pattern, 2**self.mantissa_bits)
        if exponent:
            mantissa += 2**self.mantissa_bits
        quantum = max(exponent, 1) - self.bias - self.mantissa_bits
        value = mantissa * Fraction(2) ** quantum
        return -0.0 if sign and not value else -value if sign else value

    def store(self, value: Number) -> Number:
        """Returns the stored number nearest to a value."""
        sign, pattern = self.encode(value)
        return self.decode(pattern, sign)

    def neighbours(self, value: Number) -> tuple[Number | None, Number | None]:
        """Returns the next smaller and the next larger number; None past infinity."""
        sign, pattern = self.encode(value)
        if math.isnan(self.decode(pattern)):
            return None, None
        place = -pattern if sign else pattern
        around = [self.decode(abs(p), int(p < 0)) for p in (place - 1, place + 1)]
        if pattern == self.overflow:  # Nothing lies beyond infinity.
            around[1 - sign] = None
        return around[0], around[1]

    def smallest_change(self, value: Number) -> tuple[Fraction, bool] | None:
        """Returns how much must be added, away from zero, to change a stored number.

        Returns:
          Half the gap to the neighbour, and whether a change of exactly that much
          changes the number (it is a tie, which goes to the even pattern); None if
          the number is not finite.
        """
        _, pattern = self.encode(value)
        if pattern >= self.overflow:
            return None
        exponent = max(pattern >> self.mantissa_bits, 1) - self.bias
        gap = Fraction(2) ** (exponent - self.mantissa_bits)
        return gap / 2, pattern % 2 == 1

    def classify(self, value: Number) -> str:
        """Describes how a value is stored: "normal", "underflows to 0", and so on."""
        _, pattern = self.encode(value)
        stored = self.decode(pattern)
        finite = isinstance(value, Fraction)
        if not isinstance(stored, Fraction):
            name = "NaN" if math.isnan(stored) else "inf"
            return f"overflows to {name}" if finite else name
        if pattern == 0:
            return "underflows to 0" if finite and value else "zero"
        return "subnormal" if pattern < 2**self.mantissa_bits else "normal"

    def lossless_scales(self, gradient: Fraction) -> tuple[int, int]:
        """Finds the loss scales at which a gradient is a finite, normal number.

        Returns:
          The exponents of the smallest and the largest such power of two.
        """
        magnitude = abs(gradient)
        exponent = exponent_of(magnitude)
        low = self.normal_exponent - exponent
        if magnitude * Fraction(2) ** low < self.smallest_normal:
            low += 1
        high = self.largest_exponent - exponent
        while self.encode(magnitude * Fraction(2) ** high)[1] >= self.overflow:
            high -= 1
        return low, high


FLOAT32 = FloatFormat("float32", 8, 23)
FLOAT16 = FloatFormat("float16", 5, 10)
BFLOAT16 = FloatFormat("bfloat16", 8, 7)
FLOAT8_E4M3FN = FloatFormat("float8_e4m3fn", 4, 3, has_infinity=False)
FLOAT8_E5M2 = FloatFormat("float8_e5m2", 5, 2)
FORMATS = {
    form.name: form for form in (FLOAT32, FLOAT16, BFLOAT16, FLOAT8_E4M3FN, FLOAT8_E5M2)
}


def exponent_of(magnitude: Fraction) -> int:
    """Returns floor(log2(magnitude)); for 0, less than the exponent of any format."""
    if not magnitude:
        return -(2**20)
    guess = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    return guess if magnitude >= Fraction(2) ** guess else guess - 1
