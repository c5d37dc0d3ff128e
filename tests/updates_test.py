"""Learning rates, clipping, and the choice of optimizers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mp_loop import updates


def rates(*arguments, count=10, **named):
    schedule = updates.learning_rate(*arguments, **named)
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
        updates.learning_rate("constant", 1.0, 10, warmup_steps=10)


def test_the_schedule_reads_applied_updates_only():
    schedule = updates.learning_rate("constant", 1.0, 10, warmup_steps=4)
    variable = keras.Variable([1.0])
    update = updates.KerasUpdate(keras.optimizers.SGD(schedule), [variable])
    update([tf.constant([1.0])], tf.constant(False))
    assert float(update.learning_rate) == 0.25
    update([tf.constant([1.0])], tf.constant(True))
    assert float(update.learning_rate) == 0.5
    assert float(variable[0]) == 0.75


def test_a_schedule_survives_saving():
    schedule = updates.learning_rate("cosine", 1.0, 10, warmup_steps=2)
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(schedule)
    )
    assert [float(again(i)) for i in range(10)] == [
        float(schedule(i)) for i in range(10)
    ]


@pytest.mark.parametrize("clip_norm", [0.1, 5.0, 100.0])
def test_clipping_equals_tensorflows(clip_norm):
    grads = [tf.constant([3.0, 4.0]), None, tf.constant([12.0])]
    ours = updates.clip_by_norm(grads, tf.linalg.global_norm(grads), clip_norm)
    theirs, _ = tf.clip_by_global_norm(grads, clip_norm)
    assert ours[1] is None
    for i in (0, 2):
        np.testing.assert_allclose(ours[i], theirs[i], rtol=3e-7)


@pytest.mark.parametrize(
    ("name", "kind", "momentum"),
    [
        ("sgd", keras.optimizers.SGD, 0.0),
        ("momentum", keras.optimizers.SGD, 0.8),
        ("nesterov", keras.optimizers.SGD, 0.8),
        ("adam", keras.optimizers.Adam, None),
        ("adamw", keras.optimizers.AdamW, None),
    ],
)
def test_optimizers_by_name(name, kind, momentum):
    optimizer = updates.make_optimizer(name, 0.5, 0.8, 0.25, global_clipnorm=2.0)
    assert type(optimizer) is kind
    assert float(optimizer.learning_rate) == 0.5
    assert optimizer.global_clipnorm == 2.0
    assert getattr(optimizer, "momentum", None) == momentum
    assert getattr(optimizer, "nesterov", False) is (name == "nesterov")
    assert optimizer.weight_decay == (0.25 if name == "adamw" else None)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"`name` \(adan\)"):
        updates.make_optimizer("adan", 0.1)
