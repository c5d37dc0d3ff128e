"""Which loss scale fits what was observed."""

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.numerics import scale_advice
from mp_loop.step import loss_scale


def look(step, layer, variable):
    def entry(pair):
        return {"scale_from": pair[0], "scale_to": pair[1]}

    return {
        "step": step,
        "layers": [
            {"name": "a", "dtype": "float16", "activation_grads": entry(layer)},
            {"name": "f", "dtype": "float32", "activation_grads": entry((30, 31))},
            {"name": "none", "dtype": "float16", "activation_grads": None},
        ],
        "variables": [
            {"name": "b/kernel", "dtype": "float16", "grads": entry(variable)},
        ],
    }


def test_limits_are_those_of_what_stays_in_16_bits():
    lines = [look(0, (3, 20), (5, 18)), look(10, (2, 16), (1, 25))]
    assert scale_advice.limits(lines) == [(0, 5, 18), (10, 2, 16)]
    assert scale_advice.limits(lines, ["a"]) == [(0, 5, 18), (10, 1, 25)]
    assert scale_advice.limits(lines, ["b"]) == [(0, 3, 20), (10, 2, 16)]
    assert scale_advice.limits(lines, ["a", "b"]) == []


def steps(limits):
    return [scale_advice.StepLimits(step, *pair) for step, pair in limits]


@pytest.mark.parametrize(
    ("limits", "power"),
    [
        ([(0, (5, 18))], 16),
        ([(0, (5, 18)), (10, (2, 12))], 10),
        ([(0, (5, 6))], 5),
        ([(0, (9, 6))], 6),
        ([(0, (5, 40))], 24),
        ([], 15),
    ],
    ids=["room of two", "all steps", "narrow", "none suits", "cap", "unknown"],
)
def test_where_the_scale_starts(limits, power):
    rule = loss_scale.DynamicLossScale()
    assert scale_advice.initial_scale(rule, steps(limits)) == 2.0**power


def test_the_growth_interval_is_played_out():
    start = loss_scale.DynamicLossScale(initial_scale=2.0**10)
    # Nothing changes: every growth past the limit costs a step.
    assert scale_advice.growth_interval(start, steps([(0, (0, 10))]), 5000) == 2000
    # Gradients shrink by a factor of 2^20 in 4000 steps: the scale must follow.
    falling = steps([(0, (8, 12)), (4000, (28, 32))])
    rule = loss_scale.DynamicLossScale(initial_scale=2.0**10, max_scale=2.0**40)
    assert scale_advice.growth_interval(rule, falling, 4000) in (100, 200)
    assert scale_advice.growth_interval(start, [], 100) == 2000


def test_the_play_follows_the_rule():
    """The scale that is played is that of the rule itself."""
    rule = loss_scale.DynamicLossScale(initial_scale=2.0**4, growth_interval=3)
    state, skipped = rule.init(), 0
    for _ in range(40):
        finite = bool(state.scale <= 2.0**6)
        skipped += not finite
        state = rule.next_state(state, tf.constant(finite))
    played = scale_advice.lost_steps(rule, 3, np.zeros(40), np.full(40, 6.0))
    assert played == skipped > 0
