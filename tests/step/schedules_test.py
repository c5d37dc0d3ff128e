"""Learning rates: by hand, over applied updates, and saved."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mp_loop.step import schedules, updates


def rates(*arguments, count=10, **named):
    schedule = schedules.learning_rate(*arguments, **named)
    if not callable(schedule):
        return [schedule] * count
    return [float(schedule(tf.constant(i))) for i in range(count)]


TABLE = {
    "constant": (("constant", 0.5, 10), {}, [0.5] * 10),
    "warm_constant": (
        ("constant", 0.5, 10),
        {"warmup_steps": 4},
        [0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
    ),
    "piecewise": (
        ("piecewise", 1.0, 10),
        {"decay_fractions": (0.5, 0.8), "decay_factor": 0.5},
        [1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25],  # Keras: up to the boundary
    ),
    "warm_piecewise": (
        ("piecewise", 1.0, 10),
        {"decay_fractions": (0.5,), "decay_factor": 0.5, "warmup_steps": 2},
        [0.5, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5],
    ),
    "cosine": (
        ("cosine", 1.0, 10),
        {},
        [(1 + np.cos(np.pi * i / 10)) / 2 for i in range(10)],
    ),
    "warm_cosine": (
        ("cosine", 1.0, 10),
        {"warmup_steps": 2},
        [0.5, 1.0, *((1 + np.cos(np.pi * i / 8)) / 2 for i in range(8))],
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_learning_rates_by_hand(name):
    arguments, named, expected = TABLE[name]
    np.testing.assert_allclose(rates(*arguments, **named), expected, atol=1e-6)


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(ValueError, match=r"--warmup_steps \(10\) must be fewer than"):
        schedules.learning_rate("constant", 1.0, 10, warmup_steps=10)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "keras"])
def test_the_schedule_reads_applied_updates_only(fused):
    schedule = schedules.learning_rate("constant", 1.0, 10, warmup_steps=4)
    variable = keras.Variable([1.0])
    update = updates.make(keras.optimizers.SGD(schedule), [variable], fused)
    grads, scale = [tf.constant([8.0])], tf.constant(8.0)
    update(grads, scale, tf.constant(False), scale)
    assert float(update.learning_rate) == 0.25
    update(grads, scale, tf.constant(True), scale)
    assert float(update.learning_rate) == 0.5
    assert float(variable[0]) == 0.75


def test_a_schedule_survives_saving():
    schedule = schedules.learning_rate("cosine", 1.0, 10, warmup_steps=2)
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(schedule)
    )
    assert [float(again(i)) for i in range(10)] == [
        float(schedule(i)) for i in range(10)
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("Warmup", schedules.Warmup), ("Lowered", schedules.RollbackSchedule)],
)
def test_models_that_were_saved_find_their_schedule(name, kind):
    assert keras.saving.get_registered_object(f"mp_loop>{name}") is kind
