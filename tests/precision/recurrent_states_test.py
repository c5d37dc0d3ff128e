"""What stateful layers carry is kept, restored and recomputed as weights are."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.precision import recurrent_states

L = keras.layers


class Cell(L.Layer):
    """A recurrent cell of a user's own."""

    state_size = output_size = 4

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4))

    def call(self, x, states):
        y = keras.ops.tanh(keras.ops.matmul(x, self.kernel) + states[0])
        return y, [y]


LAYERS = {
    "LSTM": lambda: L.LSTM(4, stateful=True),
    "GRU": lambda: L.GRU(4, stateful=True),
    "cell": lambda: L.RNN(Cell(), stateful=True),
    "both ways": lambda: L.Bidirectional(L.GRU(4, stateful=True)),
}


def make(name):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(batch_shape=(2, 3, 5))
    return keras.Model(inputs, L.Dense(2)(LAYERS[name]()(inputs)))


def step_of(name, precision="float16", **arguments):
    optimizer = keras.optimizers.SGD(0.1)
    return mp_loop.TrainStep(make(name), optimizer, "mse", precision, **arguments)


def batch():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(2, 3, 5)).astype(np.float32)
    return inputs, generator.normal(size=(2, 2)).astype(np.float32)


@pytest.mark.parametrize("name", LAYERS)
def test_a_skip_leaves_states_as_they_were(name):
    step = step_of(name)
    inputs, labels = batch()
    step(inputs, labels)
    states = recurrent_states.of(step.twin)
    before = [np.asarray(tf.identity(state.value)) for state in states]
    assert before and all(np.any(state) for state in before)
    assert not step(inputs * np.float32(np.nan), labels)["grads_finite"]
    for old, state in zip(before, states, strict=True):
        np.testing.assert_array_equal(old, tf.identity(state.value))


@pytest.mark.parametrize("name", LAYERS)
def test_recomputed_activations_carry_states_too(name):
    kept, recomputed = (
        step_of(name, "float32", recompute=recompute) for recompute in (False, True)
    )
    for _ in range(3):
        losses = [step(*batch())["loss"] for step in (kept, recomputed)]
        np.testing.assert_allclose(*losses, rtol=1e-6)  # the sums' order alone


def test_checkpoints_hold_states():
    step = step_of("LSTM")
    held = {id(variable) for variable in step.state.other_weights}
    assert all(id(x.value) in held for x in recurrent_states.of(step.twin))


def test_stateful_layers_are_counted_with_the_batch_that_they_are_made_for():
    assert mp_loop.coverage(make("LSTM"), "float16").share > 0.8
