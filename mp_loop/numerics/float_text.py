"""Numbers as text: what a user types, read exactly, and what is shown.

    parse("2^-24")                      # Fraction(1, 16777216)
    short(Fraction(1, 16777216))        # "5.960464478e-08"

Needs neither NumPy nor TensorFlow.
"""

from __future__ import annotations

import decimal
import re
from fractions import Fraction

from mp_loop.numerics import float_format


def parse(word: str) -> float_format.Number:
    """Reads a VALUE of the command `formats`, exactly.

    Args:
      word: a decimal number, a power such as 2^-24, a fraction, inf, nan, or the bits
        of a format, such as float16:0x7bff.

    Raises:
      ValueError: it is none of these; the message is one line.
    """
    message = (
        f"VALUE ({word}) must be a number of at most 100 characters, from 1e-1000 to "
        "1e1000: 0.1, 1e-8, 2^-24, 1/3, inf, nan or float16:0x7bff."
    )
    if len(word) > 100:
        raise ValueError(message)
    try:
        if ":" in word:
            return _from_bits(*word.split(":", 1))
        power = re.fullmatch(r"([+-]?)(\d+)(?:\^|\*\*)([+-]?\d+)", word)
        if power:
            base, exponent = int(power[2]), int(power[3])
            if base > 10 or abs(exponent) > 1000:
                raise ValueError(message)
            value = Fraction(base) ** exponent
            return -value if power[1] == "-" else value
        if "/" in word:
            return Fraction(word)
        number = decimal.Decimal(word)
        if not number.is_finite() or (number.is_zero() and number.is_signed()):
            return float(number)
        if number and abs(number.adjusted()) > 1000:
            raise ValueError(message)
        return Fraction(number)
    except (ValueError, ArithmeticError) as error:
        raise ValueError(message) from error


def _from_bits(name: str, bits: str) -> float_format.Number:
    """Reads the bits of a format, such as `float16:0x7bff`."""
    pattern = int(bits, 0)
    form = float_format.FORMATS.get(name)
    if form is None or not 0 <= pattern < 2**form.bits:
        raise ValueError(bits)
    sign, magnitude = divmod(pattern, 2 ** (form.bits - 1))
    return form.decode(magnitude, sign)


def short(value: float_format.Number | None, digits: int = 10) -> str:
    """A number in a few digits, with an exponent if it is far from 1."""
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


def percent(share: float) -> str:
    """A relative error in percent, with two digits."""
    return f"{share * 100:+.2g} %" if abs(share) < 0.995 else f"{share * 100:+.0f} %"
