"""Numbers of 16 bits, and gradients to compare with float64's."""

import numpy as np
import tensorflow as tf

HALVES = {"float16": tf.float16, "bfloat16": tf.bfloat16}
EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
ROWS = 131_072


def rounded(values, dtype):
    """Values that the dtype holds exactly, as float64."""
    return np.asarray(tf.cast(tf.cast(values, HALVES[dtype]), tf.float64))


def gradients(function, sources, dy):
    with tf.GradientTape() as tape:
        tape.watch(sources)
        y = function()
    return [y, *tape.gradient(y, sources, tf.cast(dy, y.dtype))]
