"""Numbers in few characters, and the spread of several."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence


def short(value: float) -> str:
    """A number in a few characters: 12345678 is 12.35M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:.4g}{unit}"
    return f"{value:.6g}"


def metric(value: float) -> str:
    """A metric or a loss: 0.8750, and of large numbers six digits: 10,136.4."""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.6g}"


def power_of_two(value: float) -> str:
    """A loss scale: `2^15` where it is a power of two, else the number."""
    if value > 0 and math.isfinite(value) and math.frexp(value)[0] == 0.5:
        return f"2^{math.frexp(value)[1] - 1}"
    return f"{value:g}"


def duration(seconds: float) -> str:
    """A time for people: 4.2 s, 3:05 min, 2:03:05 h."""
    if not 60 <= seconds < 1e9:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def or_nan(value: object) -> float:
    """A recorded value as a number; NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns `median`, `min` and `max`; all NaN where one value is NaN."""
    if any(math.isnan(value) for value in values):
        return dict.fromkeys(("median", "min", "max"), math.nan)
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }


def spread_text(spread: Mapping[str, float], show: Callable[[float], str]) -> str:
    """A spread as `median (min to max)`; one number where its values look equal."""
    median, low, high = (show(spread[name]) for name in ("median", "min", "max"))
    return median if low == high else f"{median} ({low} to {high})"
