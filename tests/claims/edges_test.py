"""Edges where Keras' wrapper goes wrong: each shown to fail there, and not here.

Two more have their tests elsewhere: batch-norm statistics after an overflow
(keras_step_test.py) and an interval lowered in mid-run (loss_scale_test.py).
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.config import choices
from mp_loop.step import keras_step

SMALLEST = 2.0**-126  # of normal float32 numbers


def line(slope, optimizer=None, weight=0.5):
    """Returns arguments of a step on `slope * weight * inputs`; its weight is [1, 1].

    The layer is the model's last, which Keras keeps in float32.
    """
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.layers[0].kernel.assign([[weight]])
    optimizer = optimizer or keras.optimizers.SGD(1e-3)
    return model, optimizer, lambda labels, outputs: slope * outputs[:, 0]


def ours(arguments, precision="float32", **others):
    return mp_loop.TrainStep(*arguments, precision, **others)


def theirs(arguments, **others):
    return keras_step.KerasStep(*arguments, "float32", **others)


def take(step, value=1.0):
    """One step on four equal inputs; returns (whether it was applied, weight)."""
    applied = step(tf.fill((4, 1), value), tf.zeros(4))["grads_finite"]
    return bool(applied), float(np.ravel(step.state.master_weights[0])[0])


def test_growth_to_infinity():
    rule = mp_loop.DynamicLossScale.preset(
        "keras", initial_scale=2.0**127, growth_interval=1
    )
    step = ours(line(1e-36), loss_scale=rule)
    assert [take(step)[0] for _ in range(4)] == [True] * 4
    assert float(step.loss_scale) == 2.0**127

    step = theirs(line(1e-36), initial_scale=2.0**127, growth_interval=1)
    assert [take(step)[0] for _ in range(4)] == [True, False, False, False]
    for _ in range(140):  # it comes back only as NaN: inf halved is inf
        take(step)
    assert not np.isfinite(step.loss_scale)


def test_a_scale_of_zero_writes_nan():
    rule = mp_loop.DynamicLossScale.preset("keras", initial_scale=SMALLEST)
    step = ours(line(8.0), loss_scale=rule)  # 8 / 4: normal numbers at the floor
    for _ in range(30):
        assert take(step, np.inf) == (False, 0.5)
    assert float(step.loss_scale) == SMALLEST
    assert take(step) == (True, np.float32(0.5 - 8e-3))

    step = theirs(line(8.0), initial_scale=SMALLEST)
    for _ in range(30):
        assert take(step, np.inf) == (False, 0.5)
    assert float(step.loss_scale) == 0.0
    applied, weight = take(step)  # a healthy batch
    assert applied and np.isnan(weight)


def test_scaled_gradients_that_are_infinite_once_unscaled():
    """The gradient is 1e60; times 2^-120 it fits into float32."""
    arguments = line(1e30, weight=1e-30)
    rule = mp_loop.StaticLossScale(2.0**-120)
    step = ours(arguments, loss_scale=rule)
    assert take(step, 1e30) == (False, np.float32(1e-30))

    step = theirs(line(1e30, weight=1e-30), initial_scale=2.0**-120)
    applied, weight = take(step, 1e30)
    assert applied and not np.isfinite(weight)


def test_an_infinite_norm_of_finite_gradients():
    clipped = keras.optimizers.SGD(1.0, global_clipnorm=1.0)
    assert take(ours(line(1e25, clipped))) == (False, 0.5)

    clipped = keras.optimizers.SGD(1.0, global_clipnorm=1.0)
    applied, weight = take(theirs(line(1e25, clipped), initial_scale=1.0))
    assert applied and not np.isfinite(weight)


def test_a_bad_micro_batch():
    """Keras drops it uncounted: its effective batch takes in the next one's."""
    good, bad = np.full((1, 1), 1.0, np.float32), np.full((1, 1), np.inf, np.float32)
    batch = np.concatenate([good, bad, good, good])
    rule = mp_loop.DynamicLossScale(initial_scale=8.0)
    step = ours(line(1.0), loss_scale=rule, accumulate_steps=4)
    assert not step(batch, tf.zeros(4))["grads_finite"]
    assert int(step.state.skipped_steps) == 1 and float(step.loss_scale) == 4.0
    assert step(np.repeat(good, 4, 0), tf.zeros(4))["grads_finite"]
    np.testing.assert_allclose(step.master_weights[0], [[0.5 - 1e-3]], rtol=1e-6)

    optimizer = keras.optimizers.SGD(1e-3, gradient_accumulation_steps=4)
    step = theirs(line(1.0, optimizer), initial_scale=8.0)
    for row in batch:
        step(row[None], tf.zeros(1))
    assert int(optimizer._iterations.numpy()) == 3  # of four: one batch, half done
    weight = step.state.master_weights[0]
    assert weight.numpy() == [[0.5]]
    step(good, tf.zeros(1))  # the first of the next batch completes it
    assert weight.numpy() != [[0.5]]


@pytest.mark.parametrize("constant", [0.0, -1.0, float("nan"), float("inf")])
def test_senseless_constants(constant):
    with pytest.raises(ValueError, match="`initial_scale`.*must"):
        mp_loop.DynamicLossScale(initial_scale=constant)
    with pytest.raises(ValueError, match="`scale`.*must"):
        mp_loop.StaticLossScale(constant)

    step = theirs(line(1.0), initial_scale=constant)  # and no complaint
    for _ in range(3):
        applied, weight = take(step)
    lost = not applied or not np.isfinite(weight)
    assert lost or float(step.loss_scale) < 0  # a negative scale is undone exactly


def test_repeated_rows_of_a_sparse_gradient():
    """Adam's second moment squares a row's sum; Keras sums the row's squares."""

    def second_moment(make):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((2,), dtype="int32"), keras.layers.Embedding(3, 1)]
        )
        optimizer = keras.optimizers.Adam(1e-3, beta_2=0.5)
        step = make(
            (model, optimizer, lambda y, x: x[:, 0, 0] + 2.0 * x[:, 1, 0]),
        )
        step(tf.ones((1, 2), tf.int32), tf.zeros(1))
        return float(optimizer._velocities[0][1, 0])

    assert second_moment(ours) == 0.5 * (1.0 + 2.0) ** 2
    assert second_moment(theirs) == 0.5 * (1.0**2 + 2.0**2)


# From here on: edges that Keras passes too, or has no answer to.


@pytest.mark.parametrize("where", ["inputs", "labels", "loss"])
@pytest.mark.parametrize("precision", choices.PRECISIONS)
def test_a_nan_anywhere_skips_the_step(where, precision):
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(4),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(2),
    ]
    model = keras.Sequential([keras.Input((3,)), *layers])

    def loss(labels, outputs):
        value = tf.reduce_mean((outputs - labels) ** 2, 1)
        return tf.where(labels[:, 0] == 7.0, np.nan, value)

    step = mp_loop.TrainStep(model, keras.optimizers.Adam(), loss, precision)
    inputs, labels = np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32)
    inputs[0] = 2.0
    assert step(inputs, labels)["grads_finite"]
    before = [np.asarray(v).tobytes() for v in model.weights]
    if where == "inputs":
        inputs[1, 1] = np.nan
    else:
        labels[1, 0] = np.nan if where == "labels" else 7.0
    metrics = step(inputs, labels)
    assert not metrics["grads_finite"] and not metrics["forward_finite"]
    assert [np.asarray(v).tobytes() for v in model.weights] == before


@pytest.mark.parametrize("name", ["adam", "lion"])
def test_a_loss_that_reaches_no_weight_is_refused(name):
    model, _, _ = line(1.0)
    optimizer = keras.optimizers.get(name)
    step = mp_loop.TrainStep(model, optimizer, lambda labels, outputs: labels)
    with pytest.raises(ValueError, match="No gradient reaches .*kernel"):
        step(tf.ones((4, 1)), tf.zeros(4))


@pytest.mark.parametrize("precision", choices.PRECISIONS)
def test_nothing_to_train(precision):
    """An empty list of gradients is finite; statistics move all the same."""
    layers = [keras.layers.Dense(2), keras.layers.BatchNormalization(scale=False)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.layers[0].trainable = False
    layers[1].beta.trainable = False
    step = mp_loop.TrainStep(model, keras.optimizers.Adam(), "mse", precision)
    assert not step.master_weights
    metrics = step(tf.ones((4, 3)), tf.zeros((4, 2)))
    assert metrics["grads_finite"] and float(metrics["grad_norm"]) == 0.0
    assert np.all(np.asarray(layers[1].moving_variance) != 1.0)


@keras.saving.register_keras_serializable("edges_test")
class Counter(keras.layers.Layer):
    """Counts its calls in an integer variable."""

    def build(self, shape):
        self.calls = self.add_weight(
            shape=(), dtype="int64", initializer="zeros", trainable=False
        )

    def call(self, inputs):
        self.calls.assign_add(1)
        return inputs


@pytest.mark.parametrize("precision", choices.PRECISIONS)
def test_integer_and_frozen_variables(precision):
    keras.utils.set_random_seed(0)
    frozen = keras.layers.Dense(4, name="frozen")
    layers = [Counter(), frozen, keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    frozen.trainable = False
    before = [np.asarray(v).tobytes() for v in frozen.weights]
    step = mp_loop.TrainStep(model, keras.optimizers.Adam(), "mse", precision)
    calls = layers[0].calls
    start = int(calls)
    assert step(tf.ones((4, 3)), tf.zeros((4, 2)))["grads_finite"]
    assert calls.dtype == "int64" and int(calls) == start + 1
    assert not step(np.full((4, 3), np.nan), tf.zeros((4, 2)))["grads_finite"]
    assert int(calls) == start + 1  # a skip undoes what the forward pass wrote
    assert [np.asarray(v).tobytes() for v in frozen.weights] == before
    assert len(step.master_weights) == 2


@pytest.mark.parametrize("precision", choices.PRECISIONS)
def test_a_layer_used_twice_has_one_master_and_the_sum_of_its_gradients(precision):
    inputs = keras.Input((1,))
    twice = keras.layers.Dense(1, use_bias=False)
    model = keras.Model(inputs, twice(twice(inputs)))
    twice.kernel.assign([[3.0]])
    step = mp_loop.TrainStep(
        model, keras.optimizers.SGD(0.5), lambda y, x: x[:, 0], precision
    )
    assert len(step.master_weights) == 1
    assert step(tf.ones((4, 1)), tf.zeros(4))["grads_finite"]
    # d(w * w) / dw = 6, exact in any of the types.
    np.testing.assert_array_equal(twice.kernel, [[3.0 - 0.5 * 6.0]])
