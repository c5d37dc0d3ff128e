"""Which differences between two models of equal weights are found."""

import keras
import pytest

from mp_loop.models import model_difference

layers = keras.layers


def network(epsilon=1e-3, padding="same", activation="relu", swapped=False, **conv):
    """Two convolutions and a sum; the arguments change no shape of a weight."""
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding=padding, **conv)(inputs)
    a = layers.BatchNormalization(epsilon=epsilon)(x)
    b = layers.Conv2D(4, 1, activation=activation)(a)
    first, second = (b, a) if swapped else (a, b)
    return keras.Model(inputs, layers.Subtract()([first, second]))


def behind_rescaling():
    inputs = keras.Input((6, 6, 2))
    return keras.Model(inputs, network()(layers.Rescaling(2.0)(inputs)))


def in_another_order():
    features = network()
    return keras.Sequential([keras.Input((6, 6, 2)), features, layers.ReLU()])


def with_a_head():
    features = network()
    pooled = layers.GlobalAveragePooling2D()(features.output)
    return keras.Model(features.input, layers.Dense(3)(pooled))


SAME = {
    "the same": network,
    "more layers at the end": with_a_head,
    "in a model of its own": in_another_order,
    "another start and penalty": lambda: network(
        kernel_initializer="zeros", kernel_regularizer="l2"
    ),
}
DIFFERENT = {
    "epsilon": (lambda: network(epsilon=1e-2), "epsilon of"),
    "padding": (lambda: network(padding="valid"), "padding of"),
    "activation": (lambda: network(activation="gelu"), "activation of"),
    "preprocessing": (behind_rescaling, "(Conv2D) there is rescaling"),
    "wiring": (lambda: network(swapped=True), "the outputs for the same input differ"),
    "fewer layers": (
        lambda: keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(4, 3)]),
        "padding of",
    ),
}


def described(make):
    theirs, ours = make(), network()
    for to, value in zip(ours.weights, theirs.weights, strict=False):
        to.assign(value)
    return model_difference.describe(ours, theirs)


@pytest.mark.parametrize("name", SAME)
def test_models_that_compute_the_same(name):
    assert described(SAME[name]) == ""


@pytest.mark.parametrize("name", DIFFERENT)
def test_models_that_differ(name):
    make, said = DIFFERENT[name]
    assert said in described(make)
