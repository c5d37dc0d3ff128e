"""Label smoothing and class weights, beside what Keras makes of one-hot labels."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.step import class_losses, loss_names, losses
from tests.support import steps

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 5, (3, 4))
LOGITS = RANDOM.normal(size=(3, 4, 5)).astype(np.float32) * 4
WEIGHTS = (0.5, 1.0, 0.0, 3.0, 2.0)


def expected(outputs, from_logits, smoothing, weights):
    found = keras.losses.categorical_crossentropy(
        tf.one_hot(LABELS, 5), outputs, from_logits, smoothing
    )
    return found * np.array(weights or (1,) * 5)[LABELS]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("weights", [(), WEIGHTS])
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("last", [(), (1,)])
def test_they_are_those_of_keras_and_one_hot_labels(
    smoothing, weights, from_logits, last
):
    outputs = LOGITS if from_logits else tf.nn.softmax(LOGITS)
    found = class_losses.sparse_categorical_crossentropy(
        LABELS.reshape(*LABELS.shape, *last), outputs, from_logits, smoothing, weights
    )
    wanted = expected(outputs, from_logits, smoothing, weights)
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [(), WEIGHTS])
@pytest.mark.parametrize("from_logits", [True, False])
def test_the_loss_of_shares_is_the_mean_of_those_of_classes(
    smoothing, weights, from_logits
):
    outputs = LOGITS if from_logits else tf.nn.softmax(LOGITS)
    others = np.roll(LABELS, 1)
    shares = 0.75 * tf.one_hot(LABELS, 5) + 0.25 * tf.one_hot(others, 5)
    made = loss_names.make("categorical_crossentropy", from_logits, smoothing, weights)
    of_classes = functools.partial(
        class_losses.sparse_categorical_crossentropy,
        outputs=outputs,
        from_logits=from_logits,
        label_smoothing=smoothing,
        class_weights=weights,
    )
    wanted = 0.75 * of_classes(LABELS) + 0.25 * of_classes(others)
    np.testing.assert_allclose(made(shares, outputs), wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_logits_give_the_same_values_and_rounded_gradients(dtype):
    loss = losses.of(
        loss_names.make("sparse_categorical_crossentropy", True, 0.1, WEIGHTS)
    )
    narrow = tf.cast(LOGITS, dtype)
    wide = tf.cast(narrow, tf.float32)
    found, grads = [], []
    for logits in (narrow, wide):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            found.append(loss(tf.constant(LABELS), logits) * 1024)
        grads.append(tape.gradient(found[-1], logits))
    np.testing.assert_allclose(*found, rtol=1e-6)
    assert grads[0].dtype == narrow.dtype
    rounded = tf.cast(tf.cast(grads[1], dtype), tf.float32)
    ulp = 2.0 ** (-10 if dtype == "float16" else -7)
    np.testing.assert_allclose(tf.cast(grads[0], tf.float32), rounded, rtol=ulp)


def test_labels_are_checked_and_16_bit_logits_are_taken_as_they_are():
    made = loss_names.make("sparse_categorical_crossentropy", True, 0.1)
    assert losses.takes_narrow(made)
    step = mp_loop.TrainStep(steps.conv_model(), "sgd", made, "bfloat16")
    inputs, labels = steps.data()
    labels[3] = 4
    with pytest.raises(tf.errors.InvalidArgumentError, match="from 0 to 3"):
        step(inputs, labels)


def test_class_weights_update_as_those_of_fit():
    ours, theirs = steps.conv_model(), steps.conv_model()
    loss = loss_names.make("sparse_categorical_crossentropy", True, 0.0, WEIGHTS[:4])
    step = mp_loop.TrainStep(ours, keras.optimizers.SGD(0.1), loss, "float32")
    inputs, labels = steps.data()
    theirs.compile(keras.optimizers.SGD(0.1), steps.loss())
    weights = dict(enumerate(WEIGHTS[:4]))
    theirs.train_on_batch(inputs, labels, class_weight=weights)
    step(inputs, labels)
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_a_smoothed_loss_is_lowest_at_the_smoothed_labels():
    loss = functools.partial(
        class_losses.sparse_categorical_crossentropy, label_smoothing=0.2
    )
    best = np.full((1, 5), 0.04, np.float32)
    best[0, 2] = 0.84
    other = np.full((1, 5), 0.01, np.float32)
    other[0, 2] = 0.96
    assert loss([2], best) < loss([2], other)
