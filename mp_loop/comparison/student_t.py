"""Student's t distribution, in plain Python.

SciPy has it too (`scipy.stats.t`), but `pip install mp_loop` does not install SciPy:
no requirement of the package needs it.
"""

from __future__ import annotations

import functools
import math

_MOST_TERMS = 100_000


def tail(t: float, degrees: int) -> float:
    """The probability of more than `t`, accurate where it is small.

    Half the regularized incomplete beta function I_x(degrees / 2, 1 / 2) at
    x = degrees / (degrees + t^2) (Abramowitz and Stegun 26.7.1).

    Args:
      t: any number, infinite ones included.
      degrees: of freedom, at least 1.
    """
    if math.isnan(t):
        return math.nan
    ratio = abs(t) / math.sqrt(degrees)
    x = 1 / (1 + ratio * ratio)
    rest = ratio * ratio * x if x else 1.0  # 1 - x, precise where it is small
    half = _incomplete_beta(degrees / 2, 0.5, x, rest) / 2
    return half if t >= 0 else 1 - half


@functools.lru_cache
def quantile(p: float, degrees: int) -> float:
    """The number that t does not exceed with probability `p`.

    Args:
      p: between 0 and 1, both excluded.
      degrees: of freedom, at least 1.
    """
    if not 0 < p < 1:
        raise ValueError(f"`p` ({p}) must be between 0 and 1.")
    if p < 0.5:  # The tail is precise where it is small.
        return -_from_tail(p, degrees)
    return _from_tail(1 - p, degrees)


def _from_tail(p: float, degrees: int) -> float:
    """By bisection: the number that is exceeded with probability `p`, at most 0.5."""
    low, high = 0.0, 1.0
    while tail(high, degrees) > p:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high and high - low > 1e-300:
        if tail(middle, degrees) > p:
            low = middle
        else:
            high = middle
    return high if low else 0.0


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """The regularized incomplete beta function I_x(a, b); `rest` is 1 - x.

    The continued fraction of DLMF 8.17.22, evaluated by Lentz' method, on the side of
    the mean where it converges fast.
    """
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, rest, x)
    front = math.exp(
        math.lgamma(a + b)
        - math.lgamma(a)
        - math.lgamma(b)
        + a * math.log(x)
        + b * math.log(rest)
    )
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, _MOST_TERMS):
        before = fraction
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / (1 + term * d)
            c = 1 + term / c
            fraction *= c * d
        if abs(fraction - before) <= 4e-16 * abs(fraction):
            break
    return front * fraction / a
