"""What a Transformer is made of in 16 bits: attention and dropout.

The layers of keras_hub are tested in hub_test.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.precision import transformer

pytestmark = pytest.mark.usefixtures("same_bits")


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
def test_dropout_of_few_bits_keeps_the_mean(rate, dtype):
    layer = keras.layers.Dropout(rate, seed=1)
    twin = transformer.dropout(layer, keras.DTypePolicy(dtype), few_bits=True)
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


L = keras.layers
DROPOUTS = {
    "numbers": lambda: L.Dropout(0.1, seed=1),
    "nearly all": lambda: L.Dropout(0.999, seed=1),
    "rows": lambda: L.Dropout(0.3, noise_shape=(None, 1, 1, 1), seed=1),
    "channels": lambda: L.SpatialDropout2D(0.3, seed=1),
    "nothing": lambda: L.Dropout(0.0, seed=1),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "name, few_bits",
    [(name, False) for name in DROPOUTS]
    + [(name, True) for name in DROPOUTS if name != "numbers"],
)
def test_dropout_drops_what_float32_does(name, dtype, few_bits):
    """The same numbers, call after call, multiplied in float32."""
    layer = DROPOUTS[name]()
    twin = transformer.dropout(layer, keras.DTypePolicy(dtype), few_bits)
    x = tf.cast(tf.random.stateless_normal((16, 9, 9, 8), [1, 2]), dtype)
    wide = tf.cast(x, tf.float32)
    for _ in range(2):
        with tf.GradientTape() as tape:
            tape.watch([x, wide])
            y, exact = twin(x, training=True), layer(wide, training=True)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, tf.cast(exact, dtype))
        ours, theirs = tape.gradient([y, exact], [x, wide])
        np.testing.assert_array_equal(ours, tf.cast(theirs, dtype))
    assert twin(x).dtype == dtype
    np.testing.assert_array_equal(twin(x), x)


def attention_twin(layer, shape, few_bits=False):
    """In bfloat16, with the weights of a layer, which it builds."""
    if not layer.built:
        layer.build(shape, shape)
    twin = transformer.attention(layer, keras.DTypePolicy("bfloat16"), few_bits)
    twin.build(shape, shape)
    for mine, master in zip(twin.weights, layer.weights, strict=True):
        mine.assign(tf.cast(master, mine.dtype))
    return twin


@pytest.mark.parametrize("few_bits", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_long_attention_is_run_again_with_the_same_bits(few_bits, causal):
    """Beside the weights that are kept where they are asked for."""
    layer = keras.layers.MultiHeadAttention(2, 8, dropout=0.3, seed=7)
    shape = (2, 24, 8)
    # Three: the sum of three gradients of one would depend on their order.
    given = tf.unstack(
        tf.cast(np.random.default_rng(0).normal(size=(3, *shape)), tf.bfloat16)
    )

    def gradients(with_scores):
        twin = attention_twin(layer, shape, few_bits)
        found = []
        for _ in range(2):  # with other numbers dropped
            with tf.GradientTape() as tape:
                tape.watch(given)
                y = twin(
                    *given,
                    training=True,
                    use_causal_mask=causal,
                    return_attention_scores=with_scores,
                )
                y = y[0] if with_scores else y
            found += [y, *tape.gradient(y, [*given, *twin.trainable_variables])]
        return found

    ours, wanted = gradients(False), gradients(True)
    assert np.any(ours[0] != ours[len(ours) // 2])
    for mine, other in zip(ours, wanted, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_very_long_attention_is_computed_for_some_queries_at_a_time(causal, compiled):
    # Without biases: the gradient of that of the keys is 0, but for rounding.
    layer = keras.layers.MultiHeadAttention(2, 4, use_bias=False)
    shape = (3, 37, 8)  # a prime number of queries
    layer.build(shape, shape)
    random = np.random.default_rng(0)
    for x in layer.weights:
        x.assign(random.normal(size=x.shape))
    twin = attention_twin(layer, shape)
    given = tf.unstack(tf.cast(random.normal(size=(3, *shape)), tf.bfloat16))
    mask = random.random((3, 1, 37)) < 0.8

    @tf.function(autograph=False, jit_compile=compiled)
    def gradients(with_scores):
        with tf.GradientTape() as tape:
            tape.watch(given)
            y = twin(
                *given,
                attention_mask=mask,
                use_causal_mask=causal,
                return_attention_scores=with_scores,
            )
            y = tf.cast(y[0] if with_scores else y, tf.float32)
        return [y, *tape.gradient(y, [*given, *twin.trainable_variables], 1 + y)]

    graph = gradients.get_concrete_function(False).graph
    assert "StatelessWhile" in {op.type for op in graph.get_operations()}
    for mine, other in zip(gradients(False), gradients(True), strict=True):
        mine, other = np.float32(mine), np.float32(other)
        assert np.linalg.norm(mine - other) <= 0.01 * np.linalg.norm(other)


def test_some_queries_at_a_time_drop_numbers_of_the_same_rate():
    """Each block of them its own; the same forward and backward."""
    layer = keras.layers.MultiHeadAttention(1, 1, use_bias=False, dropout=0.25, seed=7)
    shape = (1, 64, 1)
    twin = attention_twin(layer, shape, few_bits=True)
    for x in twin.weights:
        x.assign(tf.ones_like(x))
    # Equal weights for all keys; the value of each key is in a place of its own.
    query, keys = tf.zeros(shape, tf.bfloat16), tf.zeros(shape, tf.bfloat16)
    values = tf.ones(shape, tf.bfloat16)
    with tf.GradientTape() as tape:
        tape.watch(values)
        y = twin(query, values, keys, training=True)
        loss = tf.reduce_sum(tf.cast(y, tf.float32))
    kept = np.float32(y)[0, :, 0]  # the share of 64 keys, by query
    blocks = kept[:63].reshape(21, 3)  # 64 x 64 weights, made of 3 x 64 numbers
    assert len({tuple(block) for block in blocks}) > 15
    np.testing.assert_allclose(kept.mean(), 1.0, atol=0.05)
    # What forward kept of all queries for all keys, backward gives back.
    np.testing.assert_allclose(
        np.float32(tape.gradient(loss, values)).sum(), kept.sum(), rtol=0.01
    )


def test_attention_drops_what_float32_does():
    inputs = keras.Input((6, 16))
    layer = keras.layers.MultiHeadAttention(2, 8, dropout=0.4, seed=7)
    outputs = L.Dense(1)(layer(inputs, inputs))  # the last layer stays float32
    model = keras.Model(inputs, outputs)
    twin = mp_loop.half_precision_twin(model, "float16")
    x = np.random.default_rng(0).normal(size=(4, 6, 16)).astype(np.float32)
    for _ in range(2):
        exact, ours = model(x, training=True), twin(x, training=True)
        np.testing.assert_allclose(ours, exact, atol=0.02)
    assert np.abs(np.asarray(model(x)) - np.asarray(exact)).max() > 0.1
