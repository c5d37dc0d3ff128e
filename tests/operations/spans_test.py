"""Attention is run again in the backward pass, and gives the same bits."""

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.operations import spans
from tests.support import emissions

pytestmark = pytest.mark.usefixtures("same_bits")

T, WIDTH = 40, 8
SIZE = 2 * T * T  # of the weights of attention
RANDOM = np.random.default_rng(0)
W = tf.Variable(RANDOM.normal(size=(WIDTH, WIDTH)).astype(np.float32), name="w")
WIDE = tf.Variable(RANDOM.normal(size=(WIDTH, 4 * WIDTH)).astype(np.float32))
VARIABLES = (W, WIDE)


def attention(x, weights=tf.nn.softmax):
    q, k, v = x @ W, tf.sin(x) @ W, tf.cos(x) @ W
    scores = tf.einsum("btd,bsd->bts", q, k) * WIDTH**-0.5
    size = tf.shape(x)[1]
    mask = tf.linalg.band_part(tf.ones((size, size)), -1, 0)
    return tf.einsum("bts,bsd->btd", weights(scores + (1.0 - mask) * -1e9), v)


def dropped(x):
    seed = tf.constant([3, 4])
    return attention(
        x, lambda s: tf.nn.experimental.stateless_dropout(tf.nn.softmax(s), 0.3, seed)
    )


def heads(x):
    """Two of them, and normalized values of which nothing else is used."""

    def split(y):
        return tf.transpose(tf.reshape(y, (-1, tf.shape(x)[1], 2, 16)), (0, 2, 1, 3))

    q, k, v = (split(y @ WIDE) for y in (x, tf.sin(x), tf.cos(x)))
    scores = tf.matmul(q, k, transpose_b=True)
    made = tf.nn.softmax(scores) @ tf.math.l2_normalize(v, -1)
    joined = tf.reshape(tf.transpose(made, (0, 2, 1, 3)), (-1, tf.shape(x)[1], 32))
    return tf.matmul(joined, WIDE, transpose_b=True)


def shared(x):
    """The weights of one attention are used for two kinds of values."""
    scores = tf.nn.softmax(tf.matmul(x @ W, x, transpose_b=True))
    return scores @ tf.sin(x) + scores @ tf.cos(x)


def feed_forward(x):
    return tf.matmul(tf.nn.gelu(x @ WIDE), WIDE, transpose_b=True)


def gate(x):
    return (x @ W) * tf.nn.silu(x @ W)


def summary(x):
    """Products of activations that make less than they take."""
    return tf.matmul(x, tf.nn.tanh(tf.matmul(x @ W, x, transpose_a=True)))


X = tf.cast(RANDOM.normal(size=(2, T, WIDTH)).astype(np.float32), tf.bfloat16)
ATTENTIONS = (attention, dropped, heads)


@pytest.mark.parametrize("function", [*ATTENTIONS, shared, feed_forward, gate, summary])
def test_the_bits_are_the_same_and_attention_keeps_no_weights(function, monkeypatch):
    ours = emissions.step(function, X.shape, VARIABLES)
    left = emissions.kept(ours.get_concrete_function().graph, SIZE)
    assert bool(left) is (function is shared), left
    y, found = ours(X)
    monkeypatch.setattr(spans, "found", lambda graph, plan: plan.order)
    plain = emissions.step(function, X.shape, VARIABLES)
    if function in ATTENTIONS:
        assert emissions.kept(plain.get_concrete_function().graph, SIZE)
    wanted, grads = plain(X)
    np.testing.assert_array_equal(y, wanted)
    for mine, other in zip(found, grads, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_lengths_may_be_unknown():
    y, found = emissions.step(attention, (None, None, WIDTH), VARIABLES)(X)
    wanted, grads = emissions.step(attention, X.shape, VARIABLES)(X)
    np.testing.assert_array_equal(y, wanted)
    for mine, other in zip(found, grads, strict=True):
        np.testing.assert_array_equal(mine, other)
