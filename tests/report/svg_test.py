"""Axes: round and few numbers."""

import math

from hypothesis import given
from hypothesis import strategies as st

from mp_loop.report import svg


@given(
    low=st.floats(-1e6, 1e6),
    size=st.floats(1e-6, 1e9),
    most=st.integers(2, 8),
    whole=st.booleans(),
)
def test_ticks_are_round_and_few(low, size, most, whole):
    axis = svg.Axis(low, low + size, 0, 1)
    ticks = axis.ticks(most, whole)
    assert len(ticks) <= most + 1
    assert all(axis.low <= t <= axis.high + 1e-9 * abs(axis.high) for t in ticks)
    steps = [b - a for a, b in zip(ticks, ticks[1:], strict=False)]
    for step in steps:
        assert f"{step:.0e}"[0] in "125" or whole or abs(low) > 1e6 * size
        assert not whole or math.isclose(step, round(step))
