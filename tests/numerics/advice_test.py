"""Advice: the search finds what is hidden, and the judge measures what is there."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from mp_loop.numerics import advice
from mp_loop.step import gradients, loss_scale
from tests.step import train_step_test as helpers

NAMES = tuple("abcdefghij")


@given(st.sets(st.sampled_from(NAMES), max_size=3))
def test_hidden_layers_are_found(hidden):
    found = advice.fewest(NAMES, lambda names: hidden <= set(names))
    assert set(found.names) == hidden
    # Up to two layers of ten, all smaller sets are tried.
    assert found.fewest or len(hidden) > 2


@given(st.lists(st.sets(st.sampled_from(NAMES), min_size=1, max_size=4), min_size=1))
def test_no_layer_of_the_answer_can_be_left_out(ways):
    def is_enough(names):
        return any(way <= set(names) for way in ways)

    found = advice.fewest(NAMES, is_enough)
    assert is_enough(found.names)
    for name in found.names:
        assert not is_enough(tuple(n for n in found.names if n != name))
    if found.fewest:
        assert len(found.names) == min(map(len, ways))


def test_the_smaller_of_two_ways_is_found():
    ways = ({"a", "b"}, {"j"})
    found = advice.fewest(NAMES, lambda names: any(w <= set(names) for w in ways))
    assert found == advice.Islands(("j",), True)


def test_what_cannot_be_helped_is_not():
    assert advice.fewest(NAMES, lambda names: False) is None


def test_few_measurements_find_one_layer_of_many():
    names, tried = tuple(map(str, range(100))), []

    def is_enough(chosen):
        tried.append(chosen)
        return "77" in chosen

    assert advice.fewest(names, is_enough).names == ("77",)
    assert len(tried) < 20


@pytest.mark.parametrize("name", ["dense", "a.b", "x(1)", "a|b"])
def test_the_regular_expression_finds_these_layers_alone(name):
    pattern = advice.regex([name, "other"])
    assert re.search(pattern, name) and re.search(pattern, "other")
    assert not re.search(pattern, f"{name}_1") and not re.search(pattern, "o")
    assert advice.regex([]) == ""


def squares():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dropout(0.5, name="dropout")(x)
    x = keras.layers.Rescaling(400.0, name="large")(x)
    x = keras.layers.Multiply(name="square")([x, x])
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    x = keras.layers.Rescaling(1e-5, name="small")(x)
    x = keras.layers.Dense(8, name="hidden")(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(x))


def judge(precision="float16", **arguments):
    model = squares()
    loss = helpers.loss()
    made = advice.Judge(
        model,
        lambda labels, outputs: gradients.mean_loss(loss, labels, outputs, None),
        [helpers.data(), helpers.data(seed=1)],
        precision,
        **arguments,
    )
    return model, made


def test_the_layer_that_overflows_is_named_and_the_model_is_left_alone():
    model, made = judge()
    before = helpers.bits([v.value for v in model.variables])
    assert made.candidates == ["conv", "norm", "dropout", "square", "hidden"]
    assert made.error(()).outputs == np.inf
    islands = advice.fewest(
        made.candidates, lambda names: made.error(names).within(0.05, 0.5)
    )
    assert islands == advice.Islands(("square",), True)
    repaired = made.error(("square",))
    assert 0 < repaired.outputs < 0.01 and 0 < repaired.grads < 0.1
    assert repaired.variable in [v.path for v in model.trainable_variables]
    everything = made.error(made.candidates)
    assert everything.outputs < 1e-5 and everything.grads < 1e-4
    assert helpers.bits([v.value for v in model.variables]) == before
    assert made.evaluations <= 12


def test_a_scale_that_is_too_large_is_lowered_until_gradients_fit():
    _, made = judge(scale=2.0**40)
    error = made.error(("square",))
    assert error.within(0.05, 0.5)
    assert error.scale == 2.0 ** (40 - 4 * round((40 - np.log2(error.scale)) / 4))
    assert error.scale < 2.0**30


def test_float64_sees_the_rounding_of_float32():
    _, made = judge("bfloat16", scale=1.0, reference="float64")
    error = made.error(made.candidates)
    assert 1e-9 < error.outputs < 1e-5
    assert made.error(()).within(0.05, 0.5)  # bfloat16 reaches as far as float32


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
    assert advice.limits(lines) == [(0, (5, 18)), (10, (2, 16))]
    assert advice.limits(lines, ["a"]) == [(0, (5, 18)), (10, (1, 25))]
    assert advice.limits(lines, ["b"]) == [(0, (3, 20)), (10, (2, 16))]
    assert advice.limits(lines, ["a", "b"]) == []


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
    assert advice.initial_scale(rule, limits) == 2.0**power


def test_the_growth_interval_is_played_out():
    start = loss_scale.DynamicLossScale(initial_scale=2.0**10)
    # Nothing changes: every growth past the limit costs a step.
    assert advice.growth_interval(start, [(0, (0, 10))], 5000) == 2000
    # Gradients shrink by a factor of 2^20 in 4000 steps: the scale must follow.
    falling = [(0, (8, 12)), (4000, (28, 32))]
    rule = loss_scale.DynamicLossScale(initial_scale=2.0**10, max_scale=2.0**40)
    assert advice.growth_interval(rule, falling, 4000) in (100, 200)
    assert advice.growth_interval(start, [], 100) == 2000


def test_the_play_follows_the_rule():
    """The scale that is played is that of the rule itself."""
    rule = loss_scale.DynamicLossScale(initial_scale=2.0**4, growth_interval=3)
    state, skipped = rule.init(), 0
    for _ in range(40):
        finite = bool(state.scale <= 2.0**6)
        skipped += not finite
        state = rule.next_state(state, tf.constant(finite))
    played = advice.lost_steps(rule, 3, np.zeros(40), np.full(40, 6.0))
    assert played == skipped > 0
