"""Whether two loops reach equal accuracy: an equivalence test over seeds.

    result = paired([a - b for a, b in zip(arm, reference)], margin=0.005)
    result.verdict                      # "equivalent", "different" or "not shown"

Runs of equal seed are paired: same initial weights, same order of the data. A
difference that was not found is no evidence that there is none, so the burden of proof
is reversed: two one-sided t-tests (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15)
must each reject that the mean difference lies outside a margin, which is decided before
the runs. Floats in, floats out.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from mp_loop.comparison import student_t

LEVEL = 0.05  # of each one-sided test
POWER = 0.8
EQUIVALENT, DIFFERENT, NOT_SHOWN = "equivalent", "different", "not shown"

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

    If a difference is not finite, every result is NaN and the verdict `not shown`.

    Args:
      differences: at least two.
      margin: the largest difference that counts as none; 0: no test.

    Raises:
      ValueError: there are fewer than two differences, or the margin is not finite or
        negative.
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
        half = student_t.quantile(1 - level, n - 1) * error
        return mean - half, mean + half

    result = Equivalence(
        values, mean, deviation, interval(LEVEL), interval(LEVEL / 2), margin
    )
    if not margin:
        return result
    p = max(_one_sided(margin + side * mean, error, n - 1) for side in (1, -1))
    verdict = _verdict(result)
    needed = repeats_needed(deviation, margin) if verdict == NOT_SHOWN else 0
    return dataclasses.replace(
        result, p=p, verdict=verdict, repeats_needed=needed if needed > n else None
    )


def _verdict(result: Equivalence) -> str:
    low, high = result.interval_90
    if -result.margin < low and high < result.margin:
        return EQUIVALENT
    low, high = result.interval_95
    return NOT_SHOWN if low <= 0 <= high else DIFFERENT


def p_text(p: float) -> str:
    """A p-value in a table: `p = 0.018`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


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
        reach = student_t.quantile(1 - LEVEL, n - 1) + student_t.quantile(share, n - 1)
        if reach * deviation <= margin * math.sqrt(n):
            break
        n += 1
    return n


def _one_sided(distance: float, error: float, degrees: int) -> float:
    """The p-value of a mean at this distance inside a bound, or outside if negative."""
    if error:
        return student_t.tail(distance / error, degrees)
    # All differences are equal: the mean is known exactly.
    return 0.0 if distance > 0 else 0.5 if distance == 0 else 1.0
