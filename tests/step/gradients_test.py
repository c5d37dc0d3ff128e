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
