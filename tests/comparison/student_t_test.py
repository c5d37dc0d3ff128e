"""Student's t distribution: tables, finite sums and symmetry."""

import math
import statistics

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mp_loop.comparison import student_t

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
    found = student_t.quantile(p, degrees)
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
        assert student_t.tail(-t, degrees) == pytest.approx(expected, abs=2e-14)


def test_many_degrees_are_the_normal_distribution():
    normal = statistics.NormalDist()
    for t in (-3.0, -0.5, 0.0, 1.7):
        assert student_t.tail(-t, 10**7) == pytest.approx(normal.cdf(t), abs=1e-6)


EDGES = [
    pytest.param(math.inf, 0.0, id="inf"),
    pytest.param(-math.inf, 1.0, id="-inf"),
    pytest.param(0.0, 0.5, id="0"),
    pytest.param(1e200, 0.0, id="a square that overflows"),
]


@pytest.mark.parametrize(("t", "tail"), EDGES)
def test_edges_of_the_tail(t, tail):
    assert student_t.tail(t, 3) == tail
    assert math.isnan(student_t.tail(math.nan, 3))


def test_a_small_tail_keeps_its_digits():
    # 1 - P would be 0. Cauchy's tail is atan(1 / t) / pi.
    found = student_t.tail(1e20, 1)
    assert found == pytest.approx(math.atan(1e-20) / math.pi, rel=1e-13)


numbers = st.floats(-50, 50)
degrees_of_freedom = st.integers(1, 60)


@hypothesis.given(numbers, degrees_of_freedom)
def test_the_distribution_is_symmetric(t, degrees):
    below, above = student_t.tail(-t, degrees), student_t.tail(t, degrees)
    assert below + above == pytest.approx(1, abs=1e-15)


@hypothesis.given(numbers, numbers, degrees_of_freedom)
def test_the_distribution_rises(t, other, degrees):
    low, high = sorted((t, other))
    found = student_t.tail(-low, degrees), student_t.tail(-high, degrees)
    assert 0 <= found[0] <= found[1] + 1e-15 <= 1 + 1e-15


@hypothesis.given(st.floats(1e-6, 1 - 1e-6), degrees_of_freedom)
def test_a_quantile_is_the_inverse(p, degrees):
    t = student_t.quantile(p, degrees)
    assert student_t.tail(-t, degrees) == pytest.approx(p, rel=1e-11)
    assert student_t.quantile(1 - p, degrees) == pytest.approx(-t, rel=1e-8)


@pytest.mark.parametrize("p", [0.0, 1.0, -0.5, math.nan])
def test_what_is_no_probability_is_refused(p):
    with pytest.raises(ValueError, match=r"`p` \("):
        student_t.quantile(p, 3)
