"""What a Transformer is made of in 16 bits: attention and dropout.

The layers of keras_hub are tested in hub_test.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mp_loop import transformer


def test_attention_softmax_is_of_float32():
    layer = keras.layers.MultiHeadAttention(1, 1, use_bias=False, dropout=0.1)
    query, value = np.array([[[1.0]]]), np.array([[[1.0], [2.0]]])
    layer(query, value)
    for variable in layer.trainable_variables:
        variable.assign(tf.ones_like(variable))
    twin = transformer.attention(layer, keras.DTypePolicy("float16"))
    twin.build((1, 1, 1), (1, 2, 1))
    for variable in twin.trainable_variables:
        variable.assign(tf.ones_like(variable))
    exact = layer(query, value, return_attention_scores=True)
    ours = twin(query, value, return_attention_scores=True)
    assert ours[0].dtype == tf.float16 and ours[1].dtype == tf.float32
    np.testing.assert_allclose(ours[1], exact[1], rtol=1e-6)
    assert float(tf.reduce_sum(ours[1])) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3, 0.5, 0.9])
def test_dropout_keeps_the_mean(rate, dtype):
    layer = keras.layers.Dropout(rate, seed=1)
    twin = transformer.dropout(layer, keras.DTypePolicy(dtype))
    x = tf.ones((1000, 999), dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = twin(x, training=True)
    assert y.dtype == dtype and y.shape == x.shape
    values = np.asarray(tf.cast(y, tf.float32), np.float64)
    # 4 standard deviations of the mean of a million.
    np.testing.assert_allclose(values.mean(), 1, atol=4e-3 * (rate / (1 - rate)) ** 0.5)
    np.testing.assert_allclose((values == 0).mean(), rate, atol=0.005)
    grad = np.asarray(tf.cast(tape.gradient(y, x), tf.float32))
    np.testing.assert_array_equal(grad, values)
    assert abs(np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]) < 0.01
    assert (np.asarray(twin(x, training=True)) != np.asarray(y)).any()
    assert (np.asarray(twin(x)) == np.asarray(x)).all()
