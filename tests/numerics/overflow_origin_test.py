"""Where an overflow begins, whatever begins it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.numerics import probe
from tests.support import steps


def logits_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def chain(*layers, head=None):
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [keras.Input((8,)), *layers, head or keras.layers.Dense(4, name="logits")]
    )


def constant(units, value, name, **arguments):
    initializer = keras.initializers.Constant(value)
    return keras.layers.Dense(
        units, kernel_initializer=initializer, name=name, **arguments
    )


def batch(value=1.0):
    return np.full((4, 8), value, np.float32), np.array([0, 1, 2, 3])


def squared(labels, outputs):
    return tf.square(outputs[:, :1])


# model, batch, scale, loss, (pass, layer, values, kind)
ORIGINS = {
    "a batch with a nan": (
        lambda: chain(keras.layers.Dense(8, name="a")),
        (np.array([[np.nan] * 8] * 4, np.float32), np.arange(4)),
        1.0,
        None,
        ("input", None, "numbers of the batch", "NaN"),
    ),
    "a batch too large for float16": (
        lambda: chain(keras.layers.Dense(8, name="a")),
        batch(1e5),
        1.0,
        None,
        ("forward", "a", "float16 inputs", "infinite"),
    ),
    "a weight too large for float16": (
        lambda: chain(constant(8, 7e4, "a")),
        batch(1e-3),
        1.0,
        None,
        ("weights", None, "float16 weights", "infinite"),
    ),
    "the second layer explodes": (
        lambda: chain(constant(8, 100.0, "a"), constant(8, 100.0, "b")),
        batch(),
        1.0,
        None,
        ("forward", "b", "activations", "infinite"),
    ),
    "an island's output does not fit the next layer": (
        lambda: chain(
            constant(8, 100.0, "a"),
            keras.layers.Rescaling(1e4, name="island"),
            constant(8, 1e-6, "b"),
        ),
        batch(),
        1.0,
        None,
        ("forward", "b", "float16 inputs", "infinite"),
    ),
    "infinity less infinity": (
        lambda: chain(keras.layers.Lambda(lambda x: x / x - x / x / 0.0, name="z")),
        batch(0.0),
        1.0,
        None,
        ("forward", "z", "activations", "NaN"),
    ),
    "only the loss": (
        lambda: chain(keras.layers.Dense(8, name="a")),
        batch(),
        1.0,
        lambda labels, outputs: outputs[:, :1] * 0.0 + np.inf,
        ("loss", None, "the loss", "infinite"),
    ),
    "the scale is too large": (
        lambda: chain(keras.layers.Dense(8, name="a"), keras.layers.ReLU(name="r")),
        batch(),
        2.0**30,
        None,
        ("backward", "r", "activation gradients", "infinite"),
    ),
    "the scale is too large, behind a mask of minus infinity": (
        lambda: chain(
            keras.layers.Dense(8, name="a"),
            keras.layers.Lambda(
                lambda x: tf.concat([x, tf.fill([4, 1], -np.inf)], 1), name="mask"
            ),
            keras.layers.Softmax(name="softmax"),
        ),
        batch(),
        2.0**30,
        None,
        ("backward", "a", "activation gradients", "infinite"),
    ),
    "a sum over the batch": (
        lambda: chain(constant(8, 0.1, "a"), head=constant(4, 1.0, "logits")),
        (np.full((4, 8), 1e3, np.float32), np.zeros(4, np.int64)),
        8.0,
        squared,
        ("backward", "a", "gradients", "infinite"),
    ),
}


@pytest.mark.parametrize("name", ORIGINS)
def test_where_an_overflow_begins(name):
    model, (inputs, labels), scale, loss, expected = ORIGINS[name]
    step = mp_loop.TrainStep(model(), keras.optimizers.SGD(1e-3), loss or logits_loss())
    origin = probe.Probe(step).origin(inputs, labels, scale=scale)
    found = tuple(origin[key] for key in ("pass", "layer", "values", "kind"))
    assert found == expected
    assert origin["loss_scale"] == scale
    assert 1 <= origin["count"] <= origin["of"]
    said = origin["text"]
    assert said.startswith(f"{expected[0]}: ") and expected[3] in said
    if expected[0] == "backward":
        assert origin["variables"]
        # The largest scale that fits is found by trying.
        fits = origin["largest_scale"]
        look = probe.Probe(step)
        assert look.origin(inputs, labels, scale=fits)["finite"]
        assert not look.origin(inputs, labels, scale=2 * fits)["finite"]
        assert f"none at 2^{np.log2(fits):.0f}" in said


def test_nothing_overflows():
    step = steps.make()
    origin = probe.Probe(step).origin(*steps.data())
    assert origin == {
        "finite": True,
        "loss_scale": 2.0**15,
        "variables": {},
        "text": "nothing overflows at the loss scale 2^15",
    }
