"""A small model with every kind of state, its data, and a step that trains it."""

import keras
import numpy as np
import tensorflow as tf

import mp_loop

BATCH = 16


def data(seed=0, batch=BATCH):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(batch, 8, 8, 1)).astype(np.float32)
    return inputs, generator.integers(0, 4, batch)


def conv_model(seed=0, **dense):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu", **dense),
            keras.layers.Dropout(0.3, seed=3),
            keras.layers.Dense(4),
        ]
    )


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make(precision="float16", optimizer=None, model=None, **arguments):
    optimizer = optimizer or keras.optimizers.Adam(1e-2)
    model = model or conv_model()
    return mp_loop.TrainStep(model, optimizer, loss(), precision, **arguments)


def bits(variables):
    """The exact content of variables, NaNs included."""
    return [np.asarray(v).tobytes() for v in variables]


def trained(step):
    """Everything a skip must leave alone."""
    state = step.state
    return bits(
        [
            *state.master_weights,
            *state.working_weights,
            *state.other_weights,
            *state.slots,
        ]
    )


class Explode(keras.layers.Layer):
    """Passes values on; its gradient is multiplied by `factor`."""

    def __init__(self, **arguments):
        super().__init__(dtype="float32", **arguments)
        self.factor = tf.Variable(1.0, trainable=False)

    def call(self, inputs):
        @tf.custom_gradient
        def explode(x):
            return tf.identity(x), lambda grad: grad * self.factor

        return explode(inputs)


def batches(epoch, start, poison=()):
    def generate():
        for i in range(start, 4):
            inputs, labels = data(seed=10 * epoch + i)
            if 4 * epoch + i in poison:
                inputs = np.full_like(inputs, np.nan)
            yield inputs, labels

    signature = (
        tf.TensorSpec((BATCH, 8, 8, 1)),
        tf.TensorSpec((BATCH,), tf.int64),
    )
    return tf.data.Dataset.from_generator(generate, output_signature=signature)
