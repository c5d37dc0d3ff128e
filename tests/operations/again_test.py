"""What is computed again comes after the gradients, and is otherwise as it was."""

import tensorflow as tf

from mp_loop.operations import again


def test_under_xla_axes_are_still_known_when_it_compiles():
    @tf.function(jit_compile=True)
    def transposed(x):
        with again.for_xla():
            y, axes = again.after([x], [x, tf.constant([1, 0])])
        return tf.transpose(y, axes)

    x = tf.constant([[1.0, 2.0, 3.0]])
    assert (transposed(x) == tf.transpose(x)).numpy().all()
