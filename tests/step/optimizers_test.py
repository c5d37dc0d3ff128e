"""The optimizers that a flag can name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mp_loop.step import optimizers, updates
from tests.support import steps


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
    one = tf.constant(1.0)
    update([tf.zeros((3, 2)), tf.zeros(2)], one, tf.constant(True), one)
    np.testing.assert_array_equal(layer.kernel, np.full((3, 2), 1 - 0.5 * 0.25))
    np.testing.assert_array_equal(layer.bias, np.ones(2))


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"`name` \(adan\)"):
        optimizers.make("adan", 0.1)


@pytest.mark.parametrize("name", ["lion", "RMSprop", "adafactor", "muon", "lamb"])
def test_any_optimizer_of_keras_trains_by_its_name(name):
    step = steps.make("bfloat16", optimizers.make(name, 1e-3, weight_decay=0.1))
    before = steps.bits(step.master_weights)
    metrics = step(*steps.data())
    assert bool(metrics["grads_finite"])
    assert float(metrics["learning_rate"]) == np.float32(1e-3)
    after = steps.bits(step.master_weights)
    assert all(a != b for a, b in zip(before, after, strict=True))
