"""Learning rates, clipping, and the choice of optimizers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mp_loop.step import gradients, optimizers, schedules, updates


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
    update(grads, scale, tf.constant(False))
    assert float(update.learning_rate) == 0.25
    update(grads, scale, tf.constant(True))
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


@pytest.mark.parametrize("clip_norm", [0.1, 5.0, 100.0])
def test_clipping_equals_tensorflows(clip_norm):
    grads = [tf.constant([3.0, 4.0]), None, tf.constant([12.0])]
    factor = gradients.clip_factor(tf.linalg.global_norm(grads), clip_norm)
    theirs, _ = tf.clip_by_global_norm(grads, clip_norm)
    for i in (0, 2):
        np.testing.assert_allclose(grads[i] * factor, theirs[i], rtol=3e-7)


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
    optimizer = optimizers.make(name, 0.5, 0.8, 0.25, global_clipnorm=2.0)
    assert type(optimizer) is kind
    assert float(optimizer.learning_rate) == 0.5
    assert optimizer.global_clipnorm == 2.0
    assert getattr(optimizer, "momentum", None) == momentum
    assert getattr(optimizer, "nesterov", False) is (name == "nesterov")
    assert optimizer.weight_decay == (None if name == "adam" else 0.25)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adamw"])
def test_weight_decay_takes_its_part_of_kernels_alone(name):
    layer = keras.layers.Dense(2, kernel_initializer="ones", bias_initializer="ones")
    layer.build((None, 3))
    optimizer = optimizers.make(name, 0.5, weight_decay=0.25)
    update = updates.make(optimizer, layer.trainable_variables)
    update([tf.zeros((3, 2)), tf.zeros(2)], tf.constant(1.0), tf.constant(True))
    np.testing.assert_array_equal(layer.kernel, np.full((3, 2), 1 - 0.5 * 0.25))
    np.testing.assert_array_equal(layer.bias, np.ones(2))


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"`name` \(adan\)"):
        optimizers.make("adan", 0.1)


FUSED = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "nesterov": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "sgd_decay": lambda: keras.optimizers.SGD(0.1, weight_decay=0.01),
    "scheduled": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(0.1, 30), momentum=0.9
    ),
    "adam": lambda: keras.optimizers.Adam(1e-2),
    "adamw": lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1),
}


def both_updates(make_optimizer, jit_compile=False):
    """Fused and Keras' updates on equal variables, as functions."""
    pairs = []
    for fused in (True, False):
        generator = np.random.default_rng(0)
        masters = [
            keras.Variable(generator.normal(size=shape).astype(np.float32))
            for shape in ((7, 5), (3,), (4, 3))
        ]
        update = updates.make(make_optimizer(), masters, fused)
        assert (type(update) is updates.FusedUpdate) is fused
        variables = [*update.slots, *(v.value for v in masters)]
        pairs.append((tf.function(update, jit_compile=jit_compile), variables))
    return pairs


def contents(variables):
    return [np.asarray(variable).tobytes() for variable in variables]


@pytest.mark.parametrize("jit_compile", [False, True], ids=["plain", "xla"])
@pytest.mark.parametrize("name", FUSED)
def test_fused_kernels_equal_keras(name, jit_compile):
    (fused, ours), (plain, theirs) = both_updates(FUSED[name], jit_compile)
    generator = np.random.default_rng(1)
    scale, before = tf.constant(2.0**10), contents(ours)
    for step in range(40):
        grads = [
            tf.constant(generator.normal(size=shape) * 2.0**10, tf.float32)
            for shape in ((7, 5), (3,), (4, 3))
        ]
        apply = tf.constant(step % 7 != 0)
        if not apply:
            grads[step % 3] *= float("inf") if step % 2 else float("nan")
            grads[1] += float("inf")
        fused(grads, scale, apply)
        plain(grads, scale, apply)
        if not apply:
            assert contents(ours) == before  # exact, and neutral from step 0 on
        before = contents(ours)
    exact = not name.startswith("adam") and not jit_compile
    for one, other in zip(ours, theirs, strict=True):
        if exact:
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
        else:  # Other orders of rounding, 40 updates: a few units in the last place.
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6)


OTHERS = {
    "amsgrad": lambda: keras.optimizers.Adam(amsgrad=True),
    "clipped": lambda: keras.optimizers.SGD(global_clipnorm=1.0),
    "ema": lambda: keras.optimizers.Adam(use_ema=True),
    "accumulating": lambda: keras.optimizers.SGD(gradient_accumulation_steps=2),
    "rmsprop": lambda: keras.optimizers.RMSprop(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_the_kernels_lack_is_left_to_keras(name):
    update = updates.make(OTHERS[name](), [keras.Variable([1.0])])
    assert type(update) is updates.KerasUpdate


def test_a_constrained_master_is_left_to_keras():
    layer = keras.layers.Dense(2, kernel_constraint="non_neg")
    layer.build((None, 3))
    update = updates.make(keras.optimizers.SGD(), layer.trainable_variables)
    assert type(update) is updates.KerasUpdate
