"""The equivalence test: numbers and verdicts worked by hand, and its power."""

import math
import random

import hypothesis
import pytest
from hypothesis import strategies as st

from mp_loop.comparison import equivalence


def test_numbers_worked_by_hand():
    # Mean 2, deviation 1, error 1 / sqrt(3); t_0.95,2 and t_0.975,2 from tables.
    result = equivalence.paired([1, 2, 3], margin=4)
    error = 1 / math.sqrt(3)
    assert (result.mean, result.deviation) == (2, 1)
    assert result.differences == (1.0, 2.0, 3.0)
    expected = (2 - 2.919985580 * error, 2 + 2.919985580 * error)
    assert result.interval_90 == pytest.approx(expected, abs=1e-9)
    expected = (2 - 4.302652730 * error, 2 + 4.302652730 * error)
    assert result.interval_95 == pytest.approx(expected, abs=1e-9)
    # The nearer bound: t = (4 - 2) / error; two degrees have a closed form.
    t = 2 / error
    assert result.p == pytest.approx(0.5 * (1 - t / math.sqrt(2 + t * t)), abs=1e-14)


VERDICTS = [
    pytest.param([1, 2, 3], 4, "equivalent", id="inside"),
    pytest.param([-1, -2, -3], 4, "equivalent", id="inside, below 0"),
    pytest.param(
        [1, 2, 3], 3.6, "not shown", id="95 % holds 0, 90 % leaves the margin"
    ),
    pytest.param([9, 10, 11], 4, "different", id="outside"),
    pytest.param([-9, -10, -11], 4, "different", id="outside, below 0"),
    # Within the margin beyond doubt, and not 0 beyond doubt: equivalent.
    pytest.param([1.0, 1.1, 0.9], 4, "equivalent", id="small, but not 0"),
    pytest.param([-5, 5], 4, "not shown", id="two that spread"),
    pytest.param([0, 0, 0], 1e-9, "equivalent", id="no difference at all"),
    pytest.param([2, 2], 4, "equivalent", id="equal, inside"),
    pytest.param([4, 4], 4, "different", id="equal, at the margin"),
    pytest.param([5, 5], 4, "different", id="equal, outside"),
    pytest.param([1, 2, math.nan], 4, "not shown", id="not a number"),
    pytest.param([1, 2, 3], 0, "", id="no margin"),
]


@pytest.mark.parametrize(("differences", "margin", "verdict"), VERDICTS)
def test_verdicts(differences, margin, verdict):
    assert equivalence.paired(differences, margin).verdict == verdict


P_OF_EQUAL = [
    pytest.param(2, 0.0, id="inside"),
    pytest.param(4, 0.5, id="at the margin"),
    pytest.param(-5, 1.0, id="outside"),
]


@pytest.mark.parametrize(("value", "p"), P_OF_EQUAL)
def test_equal_differences_leave_no_doubt(value, p):
    result = equivalence.paired([value, value, value], 4)
    assert (result.p, result.deviation) == (p, 0)
    assert result.interval_90 == result.interval_95 == (value, value)
    assert result.repeats_needed is None


def test_without_a_margin_there_is_no_p():
    result = equivalence.paired([1, 2, 3])
    assert math.isnan(result.p)
    assert result.repeats_needed is None


REFUSED = [
    pytest.param([], 1.0, r"`differences` \(0", id="none"),
    pytest.param([1.0], 1.0, r"`differences` \(1", id="one"),
    pytest.param([1, 2], -1.0, r"`margin` \(-1", id="a negative margin"),
    pytest.param([1, 2], math.nan, r"`margin` \(nan", id="NaN"),
]


@pytest.mark.parametrize(("differences", "margin", "said"), REFUSED)
def test_what_cannot_be_tested_is_refused(differences, margin, said):
    with pytest.raises(ValueError, match=said):
        equivalence.paired(differences, margin)


some_differences = st.lists(st.floats(-1, 1), min_size=2, max_size=12)


@hypothesis.given(some_differences, st.floats(0.01, 2))
def test_the_interval_and_the_two_tests_agree(differences, margin):
    result = equivalence.paired(differences, margin)
    if abs(result.p - 0.05) > 1e-9:
        assert (result.p < 0.05) == (result.verdict == "equivalent")


@hypothesis.given(some_differences, st.floats(0.01, 2))
def test_exchanged_arms_mirror_the_result(differences, margin):
    one = equivalence.paired(differences, margin)
    other = equivalence.paired([-value for value in differences], margin)
    assert other.mean == -one.mean
    assert other.interval_90 == tuple(-bound for bound in reversed(one.interval_90))
    assert (other.p, other.verdict) == (one.p, one.verdict)


def share_equivalent(mean, deviation, repeats, margin, trials=2000):
    source = random.Random(1)
    found = 0
    for _ in range(trials):
        differences = [source.gauss(mean, deviation) for _ in range(repeats)]
        found += equivalence.paired(differences, margin).verdict == "equivalent"
    return found / trials


def test_a_difference_of_the_margin_is_called_equivalent_in_one_of_twenty():
    # Its standard error over 2,000 trials is 0.005.
    assert share_equivalent(1.0, 0.3, 5, 1.0) == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("deviation", [0.6, 1.0, 1.6])
def test_the_repeats_needed_have_the_power(deviation):
    needed = equivalence.repeats_needed(deviation, 1.0)
    assert share_equivalent(0.0, deviation, needed, 1.0) > 0.78
    # The fewest, to within the steps that whole numbers allow.
    assert share_equivalent(0.0, deviation, needed - 1, 1.0) < 0.82


def test_repeats_needed_of_extremes():
    assert equivalence.repeats_needed(0.0, 1.0) == 2
    assert equivalence.repeats_needed(100.0, 1.0) == pytest.approx(85638, rel=1e-3)
    assert equivalence.repeats_needed(1e300, 5e-324) >= 10**18
    # More repeats are named only where they are the answer.
    assert equivalence.paired([-5, 5], 4).repeats_needed > 2
    near = equivalence.paired([1.5, 3.5, -0.5, 1.5, 3.5, -0.5], 2.9)
    assert equivalence.repeats_needed(near.deviation, 2.9) <= 6
    assert (near.verdict, near.repeats_needed) == ("not shown", None)
