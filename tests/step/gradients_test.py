"""What becomes of gradients before an update."""

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.step import gradients


@pytest.mark.parametrize("clip_norm", [0.1, 5.0, 100.0])
def test_clipping_equals_tensorflows(clip_norm):
    grads = [tf.constant([3.0, 4.0]), None, tf.constant([12.0])]
    factor = gradients.clip_factor(tf.linalg.global_norm(grads), clip_norm)
    theirs, _ = tf.clip_by_global_norm(grads, clip_norm)
    for i in (0, 2):
        np.testing.assert_allclose(grads[i] * factor, theirs[i], rtol=3e-7)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_a_gradient_loses_the_cast_that_it_ends_in_and_no_bit(dtype):
    x = tf.random.stateless_normal([3, 4], [1, 2])
    found = {}

    def gradients_of(master):
        with tf.GradientTape() as tape:
            once = tf.cast(tf.reshape(master, [4, 5]), dtype)
            twice = tf.cast(master, dtype)
            loss = tf.reduce_sum(tf.cast(tf.cast(x, dtype) @ once, tf.float32) ** 2)
            loss += tf.cast(tf.reduce_sum(twice), tf.float32) if "twice" in found else 0
        return tape.gradient(loss, master)

    def narrow_and_wide(master):
        grad = gradients_of(master)
        found["dtype"] = gradients.as_computed(grad).dtype
        return tf.cast(gradients.as_computed(grad), tf.float32), grad

    master = tf.Variable(tf.random.stateless_normal([20], [3, 4]))
    narrow, wide = tf.function(narrow_and_wide, autograph=False)(master)
    assert found["dtype"] == dtype
    assert narrow.numpy().tobytes() == wide.numpy().tobytes()
    found["twice"] = True  # a sum of two is float32
    narrow, wide = tf.function(narrow_and_wide, autograph=False)(master)
    assert found["dtype"] == tf.float32
    assert narrow.numpy().tobytes() == wide.numpy().tobytes()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(master**2)
    grad = tape.gradient(loss, master)
    assert gradients.as_computed(grad) is grad  # nothing is known outside a graph
