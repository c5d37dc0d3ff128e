"""The equivalence test: Student's t from tables and sums, verdicts from hand."""

import math
import random
import statistics

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mp_loop.comparison import equivalence, forest_plot

QUANTILES = [
    # Closed forms: one degree is Cauchy's distribution, two have an algebraic one.
    pytest.param(0.95, 1, math.tan(0.45 * math.pi), id="1 degree"),
    pytest.param(0.95, 2, 0.9 * math.sqrt(2 / (1 - 0.9**2)), id="2 degrees"),
    # Tables.
    pytest.param(0.95, 2, 2.919985580, id="2 degrees, table"),
    pytest.param(0.975, 2, 4.302652730, id="two-sided, 2 degrees"),
    pytest.param(0.95, 4, 2.131846786, id="4 degrees"),
    pytest.param(0.975, 10, 2.228138852, id="10 degrees"),
    pytest.param(0.95, 30, 1.697260887, id="30 degrees"),
    pytest.param(0.025, 10, -2.228138852, id="the lower tail"),
    pytest.param(0.5, 7, 0.0, id="the median"),
]


@pytest.mark.parametrize(("p", "degrees", "expected"), QUANTILES)
def test_quantiles(p, degrees, expected):
    found = equivalence.t_quantile(p, degrees)
    # Tables have nine decimals.
    assert found == pytest.approx(expected, abs=6e-10)


def cdf_by_a_finite_sum(t, degrees):
    """Abramowitz and Stegun 26.7.3 and 26.7.4: whole degrees end the series."""
    theta = math.atan2(t, math.sqrt(degrees))
    odd = degrees % 2
    term = math.sin(theta) * (math.cos(theta) if odd else 1)
    total = theta if odd else 0.0
    for k in range((degrees - 1) // 2 if odd else degrees // 2):
        total += term
        up, down = (2 * k + 2, 2 * k + 3) if odd else (2 * k + 1, 2 * k + 2)
        term *= math.cos(theta) ** 2 * up / down
    return 0.5 + total / (math.pi if odd else 2)


@pytest.mark.parametrize("degrees", [*range(1, 21), 99, 100])
def test_the_distribution_is_the_finite_sum(degrees):
    for t in np.linspace(-12, 12, 241):
        expected = cdf_by_a_finite_sum(t, degrees)
        assert equivalence.t_cdf(t, degrees) == pytest.approx(expected, abs=2e-14)


def test_many_degrees_are_the_normal_distribution():
    normal = statistics.NormalDist()
    for t in (-3.0, -0.5, 0.0, 1.7):
        assert equivalence.t_cdf(t, 10**7) == pytest.approx(normal.cdf(t), abs=1e-6)


EDGES = [
    pytest.param(math.inf, 0.0, id="inf"),
    pytest.param(-math.inf, 1.0, id="-inf"),
    pytest.param(0.0, 0.5, id="0"),
    pytest.param(1e200, 0.0, id="a square that overflows"),
]


@pytest.mark.parametrize(("t", "tail"), EDGES)
def test_edges_of_the_tail(t, tail):
    assert equivalence.t_tail(t, 3) == tail
    assert math.isnan(equivalence.t_tail(math.nan, 3))


def test_a_small_tail_keeps_its_digits():
    # 1 - P would be 0. Cauchy's tail is atan(1 / t) / pi.
    found = equivalence.t_tail(1e20, 1)
    assert found == pytest.approx(math.atan(1e-20) / math.pi, rel=1e-13)


numbers = st.floats(-50, 50)
degrees_of_freedom = st.integers(1, 60)


@hypothesis.given(numbers, degrees_of_freedom)
def test_the_distribution_is_symmetric(t, degrees):
    below, above = equivalence.t_cdf(t, degrees), equivalence.t_cdf(-t, degrees)
    assert below + above == pytest.approx(1, abs=1e-15)


@hypothesis.given(numbers, numbers, degrees_of_freedom)
def test_the_distribution_rises(t, other, degrees):
    low, high = sorted((t, other))
    found = equivalence.t_cdf(low, degrees), equivalence.t_cdf(high, degrees)
    assert 0 <= found[0] <= found[1] + 1e-15 <= 1 + 1e-15


@hypothesis.given(st.floats(1e-6, 1 - 1e-6), degrees_of_freedom)
def test_a_quantile_is_the_inverse(p, degrees):
    t = equivalence.t_quantile(p, degrees)
    assert equivalence.t_cdf(t, degrees) == pytest.approx(p, rel=1e-11)
    assert equivalence.t_quantile(1 - p, degrees) == pytest.approx(-t, rel=1e-8)


@pytest.mark.parametrize("p", [0.0, 1.0, -0.5, math.nan])
def test_what_is_no_probability_is_refused(p):
    with pytest.raises(ValueError, match=r"`p` \("):
        equivalence.t_quantile(p, 3)


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


@pytest.fixture
def pictures(monkeypatch):
    """Every picture that is saved; none is written."""
    from matplotlib import figure

    seen = []
    monkeypatch.setattr(
        figure.Figure, "savefig", lambda self, path, dpi: seen.append(self)
    )
    return seen


def test_the_picture_shows_what_there_is(pictures):
    results = {
        "custom:float16": equivalence.paired([0.001, 0.002, 0.003], 0.005),
        "custom:float32": equivalence.paired([-0.01, -0.011, -0.009], 0.005),
    }
    assert forest_plot.draw("x.png", results, "keras:float16")
    (axis,) = pictures[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == list(results)
    said = " ".join(text.get_text() for text in axis.texts)
    for part in ("+0.20 (+0.03 to +0.37)", "equivalent, p = 0.018", "different"):
        assert part in said
    assert "margin of ±0.5" in said
    assert "percentage points" in axis.get_xlabel()
    assert "3 pairs" in axis.get_title(loc="left")
    drawn = [list(line.get_xdata()) for line in axis.lines]
    assert pytest.approx([0.1, 0.2, 0.3]) in drawn
    (band,) = axis.patches
    assert (band.get_x(), band.get_width()) == pytest.approx((-0.5, 1.0))
    # Both arms and the band are inside, and 0 is in the middle.
    low, high = axis.get_xlim()
    assert low == -high and high > 1.1


def test_the_picture_of_another_unit_and_no_margin(pictures):
    results = {"custom:float16": equivalence.paired([1.0, 2.0, 3.0])}
    assert forest_plot.draw("x.png", results, "keras:float16", share=False)
    (axis,) = pictures[0].axes
    said = " ".join(text.get_text() for text in axis.texts)
    assert "+2.00 (+0.31 to +3.69)" in said
    assert "margin" not in said and "equivalent" not in said
    assert "percentage" not in axis.get_xlabel()
    assert not axis.patches


def test_a_picture_is_written_also_of_what_is_not_a_number(tmp_path):
    path = tmp_path / "x.png"
    results = {"custom:float16": equivalence.paired([3.0, math.nan], 0.1)}
    assert forest_plot.draw(path, results, "keras:float16")
    assert path.read_bytes()[:4] == b"\x89PNG"
