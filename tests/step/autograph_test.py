"""A loss function may branch on tensors; nothing else is converted."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.step import autograph, keras_step


def squares(labels, outputs):
    return tf.reduce_mean(tf.square(outputs - tf.cast(labels, tf.float32)), -1)


def branching(labels, outputs):
    losses = squares(labels, outputs)
    if tf.reduce_max(losses) > 1.0:  # a tensor
        losses = 2.0 * losses
    return losses


def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])


def data(size):
    generator = np.random.default_rng(0)
    inputs = size * generator.normal(size=(16, 8)).astype(np.float32)
    return inputs, np.zeros((16, 4), np.float32)


STEPS = {
    "ours": mp_loop.TrainStep,
    "compiled": lambda *a: mp_loop.TrainStep(*a, jit_compile=True),
    "Keras": lambda *a: keras_step.KerasStep(*a, scaling=False),
}


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize(("size", "factor"), [(10.0, 2.0), (0.01, 1.0)])
def test_a_loss_function_branches_on_a_tensor(make, size, factor):
    inputs, labels = data(size)
    step = make(model(), keras.optimizers.SGD(0.0), branching, "float32")
    expected = factor * tf.reduce_mean(squares(labels, step.model(inputs)))
    np.testing.assert_allclose(step(inputs, labels)["loss"], expected, rtol=1e-5)
    evaluation = mp_loop.EvalStep(step.model, branching, "mse")
    found = evaluation(tf.data.Dataset.from_tensors((inputs, labels)))["eval_loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [keras.losses.sparse_categorical_crossentropy, keras.losses.MeanSquaredError()],
    ids=["function", "object"],
)
def test_what_keras_wrote_is_called_as_it_is(loss):
    assert autograph.convert(loss) is loss
