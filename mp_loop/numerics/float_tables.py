"""How a value is stored in every format, laid out for a terminal."""

from __future__ import annotations

import math
from fractions import Fraction

from mp_loop.numerics import float_format, float_text
from mp_loop.rendering import tables

_UPDATES = 1000
_SMALL_UPDATE = Fraction(1, 2**13)
_HOW_TO_READ = """\
  normal     (-1)^s x 1.mantissa x 2^(exponent - bias)
  subnormal  (-1)^s x 0.mantissa x 2^(1 - bias), where all exponent bits are 0
  inf, NaN   all exponent bits are 1; float8_e4m3fn has no inf, and one NaN"""


def of_value(word: str) -> str:
    """Returns all tables of one value.

    Args:
      word: the value, for `float_text.parse`.

    Raises:
      ValueError: the word is not a value; the message is one line.
    """
    value = float_text.parse(word)
    parts = [word, "", *_bits(value), "", *_stored(value)]
    if isinstance(value, Fraction) and value:
        parts += ["", *_updates(value)]
        low, high = float_format.FLOAT16.lossless_scales(value)
        parts += [
            "",
            "  As a gradient: float16 keeps all its bits at loss scales from "
            f"2^{low} to 2^{high}.",
        ]
    return "\n".join(parts)


def ranges() -> str:
    """Returns the table of the formats' ranges."""
    rows = [
        (
            form.name,
            f"1+{form.exponent_bits}+{form.mantissa_bits}",
            float_text.short(form.largest, 6),
            float_text.short(form.smallest_normal, 6),
            float_text.short(form.smallest, 6),
            f"2^{-form.mantissa_bits}",
            f"{form.bias}",
        )
        for form in float_format.FORMATS.values()
    ]
    head = (
        "", "bits", "largest", "normal from", "smallest", "gap at 1", "bias",
    )  # fmt: skip
    return "\n".join(
        ["ranges", "", *tables.columns([head, *rows], indent="  "), "", _HOW_TO_READ]
    )


def _bits(value: float_format.Number) -> list[str]:
    """The bits of the stored number, and what they mean."""
    rows = []
    for form in float_format.FORMATS.values():
        sign, pattern = form.encode(value)
        exponent, mantissa = divmod(pattern, 2**form.mantissa_bits)
        rows.append(
            (
                form.name,
                f"{sign}",
                f"{exponent:0{form.exponent_bits}b}",
                f"{mantissa:0{form.mantissa_bits}b}",
                form.classify(value) + _formula(form, sign, pattern),
            )
        )
    head = ("", "s", "exponent", "mantissa", "kind")
    return tables.columns([head, *rows], left=True, indent="  ")


def _formula(form: float_format.FloatFormat, sign: int, pattern: int) -> str:
    """The stored number as a significand times a power of two."""
    if not 0 < pattern < form.overflow:
        return ""
    stored = form.decode(pattern)
    exponent = max(float_format.exponent_of(stored), form.normal_exponent)
    significand = float(stored / Fraction(2) ** exponent)
    return f", {'-' if sign else ''}{significand:.4g} x 2^{exponent}"


def _stored(value: float_format.Number) -> list[str]:
    """The stored number, its neighbours and the rounding error."""
    rows = []
    for form in float_format.FORMATS.values():
        stored = form.store(value)
        below, above = form.neighbours(stored)
        rows.append(
            (
                form.name,
                *map(float_text.short, (below, stored, above)),
                _error(value, stored),
            )
        )
    head = ("", "next below", "stored", "next above", "error")
    return tables.columns([head, *rows], indent="  ")


def _error(value: float_format.Number, stored: float_format.Number) -> str:
    if not (isinstance(value, Fraction) and isinstance(stored, Fraction | float)):
        return "-"
    if not math.isfinite(stored):
        return "lost"
    if stored == value:
        return "exact"
    return float_text.percent(float((Fraction(stored) - value) / abs(value)))


def _updates(value: Fraction) -> list[str]:
    """The smallest change of a weight of this value, and the sum of many small ones."""
    rows = []
    change = abs(value) * _SMALL_UPDATE * (1 if value > 0 else -1)
    for form in float_format.FORMATS.values():
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
        moved = "not moved" if after == weight else float_text.short(after)
        rows.append(
            (
                form.name,
                f"{'>=' if also else '>'} {float_text.short(least, 4)}",
                f"2^{share:.1f}",
                moved,
            )
        )
    exact = value + _UPDATES * change
    head = (
        "as a weight",
        "smallest change",
        "of the weight",
        f"after {_UPDATES} x {float_text.short(change, 3)}",
    )
    return [
        *tables.columns([head, *rows], indent="  "),
        f"  (exactly: {float_text.short(exact)})",
    ]
