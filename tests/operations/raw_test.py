"""An operation is called by its type, wherever TensorFlow keeps its function."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import op_def_pb2

import mp_loop
from mp_loop.operations import raw


class Masked(keras.layers.Layer):
    """Adds a mask that is made in parts, as Swin's shifted windows do."""

    def call(self, x):
        mask = keras.ops.zeros((4, 8), "float32")
        mask = keras.ops.slice_update(mask, (0, 2), keras.ops.ones((4, 3)))
        return x + mask  # constant: TensorFlow has no gradient of a slice's update


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_slice_may_be_updated(jit_compile):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(batch_shape=(4, 8))
    x = Masked()(keras.layers.Dense(8)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    twin = mp_loop.half_precision_twin(model, "float16")
    given = tf.constant(np.random.default_rng(0).normal(size=(4, 8)), tf.float32)
    call = tf.function(twin, jit_compile=jit_compile, autograph=False)
    exact = model(given)
    error = tf.norm(tf.cast(call(given), tf.float32) - exact) / tf.norm(exact)
    assert error < 4 * 2.0**-11  # of a few roundings


def test_what_tensorflow_does_not_offer_is_named():
    with pytest.raises(ValueError, match="NoSuchOp is of no public module"):
        raw.call(op_def_pb2.OpDef(name="NoSuchOp"), [], [], {})
