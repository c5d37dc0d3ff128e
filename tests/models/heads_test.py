"""Heads of classifiers, and whether their outputs are logits."""

import keras
import numpy as np
import pytest

from mp_loop.models import catalog, heads
from tests.support import models


def test_saved_features_get_a_head_on_their_mean(backbone):
    features, path = backbone
    model = catalog.build(path, (8, 8, 3), 5, dropout=0.5)
    assert model.output_shape == (None, 5)
    x = models.images((8, 8, 3))
    mean = features(x).numpy().mean((1, 2))
    kernel, bias = (v.numpy() for v in model.layers[-1].weights)
    np.testing.assert_allclose(model(x), mean @ kernel + bias, rtol=1e-5, atol=1e-6)
    assert [layer.rate for layer in model.layers if hasattr(layer, "rate")] == [0.5]


@pytest.mark.parametrize(
    ("last", "logits"),
    [
        ([keras.layers.Dense(3)], True),
        ([keras.layers.Dense(3, activation="relu")], True),
        ([keras.layers.Dense(3, activation="softmax")], False),
        ([keras.layers.Dense(3, activation="sigmoid")], False),
        ([keras.layers.Dense(3), keras.layers.Softmax()], False),
        ([keras.layers.Dense(3), keras.layers.Activation("softmax")], False),
        (
            [
                keras.layers.Dense(3, activation="softmax"),
                keras.layers.Activation("linear", dtype="float32"),
            ],
            False,
        ),
        (
            [keras.layers.Dense(3, activation="softmax"), keras.layers.Reshape((3,))],
            False,
        ),
        ([keras.layers.Softmax(), keras.layers.Dense(3)], True),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_from_logits_reads_the_last_activation(last, logits, nested):
    inputs = x = keras.Input((4,))
    for layer in last:
        x = type(layer).from_config(layer.get_config())(x)
    model = keras.Model(inputs, x)
    if nested:
        outer = keras.Input((4,))
        model = keras.Model(outer, model(outer))
    assert heads.from_logits(model) is logits


def test_from_logits_sees_a_softmax_function():
    inputs = keras.Input((4,))
    assert not heads.from_logits(keras.Model(inputs, keras.ops.softmax(inputs)))
