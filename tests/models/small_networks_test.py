"""The project's own networks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mp_loop.models import catalog, small_networks
from tests.support import models


def test_every_weight_of_vit_tiny_gets_a_gradient():
    model = catalog.build("vit_tiny", (28, 28, 1), 3)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(models.images((28, 28, 1))) ** 2)
    for weight, grad in zip(
        model.trainable_weights,
        tape.gradient(loss, [w.value for w in model.trainable_weights]),
        strict=True,
    ):
        # A key's bias adds the same to all scores of a query: softmax ignores it.
        if "key/bias" not in weight.path:
            assert np.any(grad != 0), weight.path


def test_position_embedding_tells_positions_apart():
    layer = small_networks.PositionEmbedding()
    out = layer(np.zeros((2, 5, 8), np.float32))
    np.testing.assert_array_equal(out[0], layer.embedding.numpy())
    np.testing.assert_array_equal(out[0], out[1])
    assert len(np.unique(out[0], axis=0)) == 5


def test_vit_tiny_knows_where_a_patch_lies():
    model = catalog.build("vit_tiny", (8, 8, 1), 3)
    x = models.images((8, 8, 1))
    swapped = np.roll(x, 4, axis=1)  # The same four patches at other positions.
    # Without positions the two differ by rounding, some 1e-6.
    assert np.max(np.abs(model(x) - model(swapped))) > 1e-4


def count(depth):
    """Convolutions of resnet{depth}: its depth less the logits, and 2 shortcuts."""
    return depth - 1 + 2


@pytest.mark.parametrize("depth", [8, 14, 20, 32])
def test_resnet_has_the_depth_it_is_named_for(depth):
    model = catalog.build(f"resnet{depth}", (32, 32, 3), 10)
    convolutions = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    assert len(convolutions) == count(depth)
    assert model.layers[-2].input.shape == (None, 8, 8, 64)


def test_the_layer_keeps_its_registered_name():
    registered = keras.saving.get_registered_name(small_networks.PositionEmbedding)
    assert registered == "mp_loop>PositionEmbedding"
