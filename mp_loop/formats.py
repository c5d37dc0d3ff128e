"""Shows how numbers are stored: `python -m mp_loop.formats VALUE...`.

    python -m mp_loop.formats 0.1 65504 2^-24 1/3 float16:0x7bff

For each value and each type: sign, exponent and mantissa, the number that is
stored, its neighbours and the rounding error, the smallest change that a weight
of that value feels, and the loss scales at which float16 keeps it. A table of
ranges follows; without a value it comes alone.

A VALUE is a decimal number (1e-8), a power (2^-24), a fraction (1/3), inf, nan,
or the bits of a type (float16:0x7bff). Nothing is rounded on the way: values are
exact until they are stored. Exit codes: 0, or 2 for a word that is no value.
"""

from __future__ import annotations

import dataclasses
import decimal
import math
import os
import re
import sys
from collections.abc import Sequence
from fractions import Fraction

from mp_loop.rendering import tables

Number = Fraction | float  # A float only where it is inf, -inf, NaN or -0.0.

_UPDATES = 1000
_SMALL_UPDATE = Fraction(1, 2**13)
_HOW_TO_READ = """\
  normal     (-1)^s x 1.mantissa x 2^(exponent - bias)
  subnormal  (-1)^s x 0.mantissa x 2^(1 - bias), where all exponent bits are 0
  inf, NaN   all exponent bits are 1; float8_e4m3fn has no inf, and one NaN"""


@dataclasses.dataclass(frozen=True)
class Format:
    """A binary floating-point type: one sign bit, exponent, mantissa.

    The pattern of a number's magnitude, read as an integer, counts the numbers
    from 0 upwards, so that neighbours differ by one.

    Attributes:
      name: as in NumPy and ml_dtypes.
      exponent_bits: width of the exponent; its bias is the usual one.
      mantissa_bits: width of the mantissa, without the leading one.
      has_infinity: if not, the last pattern alone is NaN, and overflow gives it.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    has_infinity: bool = True

    @property
    def bits(self) -> int:
        """Width of the whole."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What is subtracted from the stored exponent."""
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
        """The smallest number that has all its mantissa bits."""
        return self.decode(2**self.mantissa_bits)

    @property
    def smallest(self) -> Fraction:
        """The smallest number above zero."""
        return self.decode(1)

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
        exponent = max(_exponent(magnitude), 1 - self.bias)
        quantum = Fraction(2) ** (exponent - self.mantissa_bits)
        binade = (exponent - (1 - self.bias)) << self.mantissa_bits
        pattern = binade + round(magnitude / quantum)
        return int(value < 0), min(pattern, self.overflow)

    def decode(self, pattern: int, sign: int = 0) -> Number:
        """Returns the number that a pattern stands for."""
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
        """Returns the number that is stored for a value."""
        sign, pattern = self.encode(value)
        return self.decode(pattern, sign)

    def neighbours(self, value: Number) -> tuple[Number | None, Number | None]:
        """Returns the stored numbers next below and next above a stored one."""
        sign, pattern = self.encode(value)
        if math.isnan(self.decode(pattern)):
            return None, None
        place = -pattern if sign else pattern
        around = [self.decode(abs(p), int(p < 0)) for p in (place - 1, place + 1)]
        if pattern == self.overflow:  # Nothing lies beyond infinity.
            around[1 - sign] = None
        return around[0], around[1]

    def smallest_change(self, value: Number) -> tuple[Fraction, bool] | None:
        """How much must be added, away from zero, to change a stored number.

        Returns:
          The bound, and whether a change of just that much is felt as well (half
          the gap to the neighbour is a tie, which goes to the even pattern); None
          where the number is not finite.
        """
        _, pattern = self.encode(value)
        if pattern >= self.overflow:
            return None
        exponent = max(pattern >> self.mantissa_bits, 1) - self.bias
        gap = Fraction(2) ** (exponent - self.mantissa_bits)
        return gap / 2, pattern % 2 == 1

    def kind(self, value: Number) -> str:
        """Says in a word or three what became of a value."""
        _, pattern = self.encode(value)
        stored = self.decode(pattern)
        finite = isinstance(value, Fraction)
        if not isinstance(stored, Fraction):
            name = "NaN" if math.isnan(stored) else "inf"
            return f"overflows to {name}" if finite else name
        if pattern == 0:
            return "underflows to 0" if finite and value else "zero"
        return "subnormal" if pattern < 2**self.mantissa_bits else "normal"


FLOAT16 = Format("float16", 5, 10)
FORMATS = (
    Format("float32", 8, 23),
    FLOAT16,
    Format("bfloat16", 8, 7),
    Format("float8_e4m3fn", 4, 3, has_infinity=False),
    Format("float8_e5m2", 5, 2),
)


def parse(word: str) -> Number:
    """Reads a VALUE, exactly.

    Raises:
      ValueError: it is none; the message is one line.
    """
    law = (
        f"VALUE ({word}) must be a number of at most 100 characters, from 1e-1000 to "
        "1e1000: 0.1, 1e-8, 2^-24, 1/3, inf, nan or float16:0x7bff."
    )
    if len(word) > 100:
        raise ValueError(law)
    try:
        if ":" in word:
            return _from_bits(*word.split(":", 1))
        power = re.fullmatch(r"([+-]?)(\d+)(?:\^|\*\*)([+-]?\d+)", word)
        if power:
            base, exponent = int(power[2]), int(power[3])
            if base > 10 or abs(exponent) > 1000:
                raise ValueError(law)
            value = Fraction(base) ** exponent
            return -value if power[1] == "-" else value
        if "/" in word:
            return Fraction(word)
        number = decimal.Decimal(word)
        if not number.is_finite() or (number.is_zero() and number.is_signed()):
            return float(number)
        if number and abs(number.adjusted()) > 1000:
            raise ValueError(law)
        return Fraction(number)
    except (ValueError, ArithmeticError) as error:
        raise ValueError(law) from error


def _from_bits(name: str, bits: str) -> Number:
    """Reads `float16:0x7bff`; a plain number of a type is its value, stored."""
    known = {form.name: form for form in FORMATS}
    pattern = int(bits, 0)
    form = known.get(name)
    if form is None or not 0 <= pattern < 2**form.bits:
        raise ValueError(bits)
    sign, magnitude = divmod(pattern, 2 ** (form.bits - 1))
    return form.decode(magnitude, sign)


def show(word: str) -> str:
    """Returns everything there is to say about one value."""
    value = parse(word)
    parts = [word, "", *_bits(value), "", *_stored(value)]
    if isinstance(value, Fraction) and value:
        parts += ["", *_updates(value)]
        scales = lossless_scales(value)
        if scales is not None:
            low, high = scales
            parts += [
                "",
                "  As a gradient: float16 keeps all its bits at loss scales from "
                f"2^{low} to 2^{high}.",
            ]
    return "\n".join(parts)


def lossless_scales(value: Fraction, form: Format = FLOAT16) -> tuple[int, int] | None:
    """The loss scales at which a gradient is neither subnormal nor overflows.

    Returns:
      The exponents of the smallest and the largest such power of two.
    """
    magnitude = abs(value)
    exponent = _exponent(magnitude)
    low = _exponent(form.smallest_normal) - exponent
    if magnitude * Fraction(2) ** low < form.smallest_normal:
        low += 1
    high = _exponent(form.largest) - exponent
    while form.encode(magnitude * Fraction(2) ** high)[1] >= form.overflow:
        high -= 1
    return low, high


def ranges() -> str:
    """Returns the table of ranges."""
    rows = [
        (
            form.name,
            f"1+{form.exponent_bits}+{form.mantissa_bits}",
            _short(form.largest, 6),
            _short(form.smallest_normal, 6),
            _short(form.smallest, 6),
            f"2^{-form.mantissa_bits}",
            f"{form.bias}",
        )
        for form in FORMATS
    ]
    head = (
        "", "bits", "largest", "normal from", "smallest", "gap at 1", "bias",
    )  # fmt: skip
    return "\n".join(
        ["ranges", "", *tables.columns([head, *rows], indent="  "), "", _HOW_TO_READ]
    )


def _bits(value: Number) -> list[str]:
    """Sign, exponent, mantissa, and how they are read."""
    rows = []
    for form in FORMATS:
        sign, pattern = form.encode(value)
        exponent, mantissa = divmod(pattern, 2**form.mantissa_bits)
        rows.append(
            (
                form.name,
                f"{sign}",
                f"{exponent:0{form.exponent_bits}b}",
                f"{mantissa:0{form.mantissa_bits}b}",
                form.kind(value) + _formula(form, sign, pattern),
            )
        )
    head = ("", "s", "exponent", "mantissa", "kind")
    return tables.columns([head, *rows], left=True, indent="  ")


def _formula(form: Format, sign: int, pattern: int) -> str:
    """The stored number as significand times power of two."""
    if not 0 < pattern < form.overflow:
        return ""
    stored = form.decode(pattern)
    exponent = max(_exponent(stored), 1 - form.bias)
    significand = float(stored / Fraction(2) ** exponent)
    return f", {'-' if sign else ''}{significand:.4g} x 2^{exponent}"


def _stored(value: Number) -> list[str]:
    """The stored number, its neighbours and the rounding error."""
    rows = []
    for form in FORMATS:
        stored = form.store(value)
        below, above = form.neighbours(stored)
        rows.append(
            (form.name, *map(_short, (below, stored, above)), _error(value, stored))
        )
    head = ("", "next below", "stored", "next above", "error")
    return tables.columns([head, *rows], indent="  ")


def _error(value: Number, stored: Number) -> str:
    if not (isinstance(value, Fraction) and isinstance(stored, Fraction | float)):
        return "-"
    if not math.isfinite(stored):
        return "lost"
    if stored == value:
        return "exact"
    return _percent(float((Fraction(stored) - value) / abs(value)))


def _updates(value: Fraction) -> list[str]:
    """What a weight of this value feels."""
    rows = []
    change = abs(value) * _SMALL_UPDATE * (1 if value > 0 else -1)
    for form in FORMATS:
        weight = form.store(value)
        smallest = form.smallest_change(weight)
        if smallest is None or not weight:
            rows.append((form.name, "-", "-", "-"))
            continue
        least, also = smallest
        share = math.log2(least / abs(weight))
        after = weight
        for _ in range(_UPDATES):
            after = form.store(after + change)
            if not isinstance(after, Fraction):
                break
        moved = "not moved" if after == weight else _short(after)
        rows.append(
            (
                form.name,
                f"{'>=' if also else '>'} {_short(least, 4)}",
                f"2^{share:.1f}",
                moved,
            )
        )
    exact = value + _UPDATES * change
    head = (
        "as a weight",
        "smallest change",
        "of the weight",
        f"after {_UPDATES} x {_short(change, 3)}",
    )
    return [
        *tables.columns([head, *rows], indent="  "),
        f"  (exactly: {_short(exact)})",
    ]


def _exponent(magnitude: Fraction) -> int:
    """Returns floor(log2), exactly; of 0, less than any type's exponent."""
    if not magnitude:
        return -(2**20)
    guess = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    return guess if magnitude >= Fraction(2) ** guess else guess - 1


def _short(value: Number | None, digits: int = 10) -> str:
    """A number in a few digits; with an exponent where it is far from 1."""
    if value is None:
        return "-"
    if isinstance(value, float) or not value:
        return f"{float(value):g}".replace("nan", "NaN")
    with decimal.localcontext(prec=digits):
        exact = decimal.Decimal(value.numerator) / value.denominator
    power = exact.adjusted()
    if -4 <= power <= 6:
        text = f"{exact:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{exact.scaleb(-power).normalize():f}e{power:+03d}"


def _percent(share: float) -> str:
    """A relative error in percent, two digits of it."""
    return f"{share * 100:+.2g} %" if abs(share) < 0.995 else f"{share * 100:+.0f} %"


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    try:
        blocks = [show(word) for word in words]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        print("\n\n".join([*blocks, ranges()]), flush=True)
    except BrokenPipeError:  # the reader has seen enough: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
