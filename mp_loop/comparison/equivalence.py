"""Whether two loops reach equal accuracy: an equivalence test over seeds.

    result = paired([a - b for a, b in zip(arm, reference)], margin=0.005)
    result.verdict                      # "equivalent", "different" or "not shown"

Runs of equal seed are paired: same initial weights, same order of the data. That a
difference was not found does not show that there is none, so the burden is turned
round: two one-sided t-tests (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15) must
each reject that the mean difference lies outside a margin, which is decided before the
runs. Floats in, floats out; no library.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence

LEVEL = 0.05  # of each one-sided test
POWER = 0.8
EQUIVALENT, DIFFERENT, NOT_SHOWN = "equivalent", "different", "not shown"

_MOST_TERMS = 100_000
# Above so many repeats Student's t is the normal distribution.
_MANY = 1000


@dataclasses.dataclass(frozen=True)
class Equivalence:
    """What paired runs say about a mean difference.

    Attributes:
      differences: arm minus reference, one for each repeat.
      mean: of the differences.
      deviation: their sample standard deviation.
      interval_90: confidence interval of the mean that belongs to two one-sided tests
        at 5 %: within the margin just where both reject.
      interval_95: the interval of the two-sided test at 5 % of "no difference".
      margin: the largest difference that counts as none; 0: not tested.
      p: the larger p-value of the two one-sided tests; NaN where not tested.
      verdict: `equivalent`: `interval_90` is inside the margin; `different`: it is not,
        and `interval_95` excludes 0; else `not shown`. Empty where not tested.
      repeats_needed: how many would show equivalence with a probability of 80 % if
        there were no difference and the deviation were the one seen; only for
        `not shown`, and None where more repeats than were made are not the answer.
    """

    differences: tuple[float, ...]
    mean: float
    deviation: float
    interval_90: tuple[float, float]
    interval_95: tuple[float, float]
    margin: float = 0.0
    p: float = math.nan
    verdict: str = ""
    repeats_needed: int | None = None


def paired(differences: Sequence[float], margin: float = 0.0) -> Equivalence:
    """Tests whether the mean of paired differences is within a margin around 0.

    A difference that is not a number makes every number NaN, and shows nothing.

    Args:
      differences: at least two.
      margin: the largest difference that counts as none; 0: no test.

    Raises:
      ValueError: one difference has no deviation; or the margin is no margin.
    """
    n = len(differences)
    if n < 2:
        raise ValueError(f"`differences` ({n} of them) must be at least 2.")
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"`margin` ({margin}) must be finite and at least 0.")
    values = tuple(map(float, differences))
    if not all(map(math.isfinite, values)):
        nothing = (math.nan, math.nan)
        verdict = NOT_SHOWN if margin else ""
        return Equivalence(
            values, math.nan, math.nan, nothing, nothing, margin, verdict=verdict
        )
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    error = deviation / math.sqrt(n)

    def interval(level: float) -> tuple[float, float]:
        half = t_quantile(1 - level, n - 1) * error
        return mean - half, mean + half

    result = Equivalence(
        values, mean, deviation, interval(LEVEL), interval(LEVEL / 2), margin
    )
    if not margin:
        return result
    p = max(
        _one_sided(mean + margin, error, n - 1), _one_sided(margin - mean, error, n - 1)
    )
    low, high = result.interval_90
    needed = None
    if -margin < low and high < margin:
        verdict = EQUIVALENT
    elif not result.interval_95[0] <= 0 <= result.interval_95[1]:
        verdict = DIFFERENT
    else:
        verdict = NOT_SHOWN
        needed = repeats_needed(deviation, margin)
        needed = needed if needed > n else None
    return dataclasses.replace(result, p=p, verdict=verdict, repeats_needed=needed)


def repeats_needed(deviation: float, margin: float) -> int:
    """The fewest pairs with which equivalence is shown with a power of 80 %.

    If the true difference is 0, both tests reject with a probability of about
    `1 - 2 P(T > margin / error - t_0.95)`, `error` being that of the mean.

    Args:
      deviation: of the differences.
      margin: above 0.
    """
    share = 1 - (1 - POWER) / 2
    normal = statistics.NormalDist()
    # Divided before it is squared: the square of a small margin may be 0.
    ratio = (normal.inv_cdf(1 - LEVEL) + normal.inv_cdf(share)) * (deviation / margin)
    n = max(2, math.ceil(min(ratio, 1e9) ** 2))
    while n < _MANY:
        reach = t_quantile(1 - LEVEL, n - 1) + t_quantile(share, n - 1)
        if reach * deviation <= margin * math.sqrt(n):
            break
        n += 1
    return n


def t_cdf(t: float, degrees: int) -> float:
    """Student's t distribution: the probability of at most `t`."""
    return t_tail(-t, degrees)


def t_tail(t: float, degrees: int) -> float:
    """The probability of more than `t`, precise where it is small.

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
def t_quantile(p: float, degrees: int) -> float:
    """The number that Student's t does not exceed with probability `p`.

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
    while t_tail(high, degrees) > p:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high and high - low > 1e-300:
        if t_tail(middle, degrees) > p:
            low = middle
        else:
            high = middle
    return high if low else 0.0


def _one_sided(distance: float, error: float, degrees: int) -> float:
    """The p-value of a mean that is so far inside a bound, or outside if negative."""
    if error:
        return t_tail(distance / error, degrees)
    # All differences are equal: the mean is where it is.
    return 0.0 if distance > 0 else 0.5 if distance == 0 else 1.0


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
