"""Attention of any form is computed for some rows at a time, if it can be."""

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.operations import nodes, spans
from tests.support import emissions

B, T, HEADS, WIDTH = 6, 43, 2, 4
RANDOM = np.random.default_rng(0)
W = tf.Variable(RANDOM.normal(size=(HEADS * WIDTH, HEADS * WIDTH)).astype(np.float32))
BIAS = tf.Variable(RANDOM.normal(size=(HEADS, T, T)).astype(np.float32), name="bias")
TABLE = tf.Variable(RANDOM.normal(size=(2 * T, HEADS)).astype(np.float32), name="table")
VARIABLES = (W, BIAS, TABLE)
X = tf.cast(RANDOM.normal(size=(B, T, HEADS * WIDTH)).astype(np.float32), tf.bfloat16)


def split(x):
    """[batch, T, heads, width]."""
    return tf.reshape(x @ W, (-1, T, HEADS, WIDTH))


def einsum(x, weights=tf.nn.softmax):
    q, k, v = split(x), split(tf.sin(x)), split(tf.cos(x))
    scores = tf.einsum("btnh,bsnh->bnts", q, k)
    return tf.einsum("bnts,bsnh->btnh", weights(scores * 0.5), v)


def matrices(x, weights=tf.nn.softmax):
    """Rows are columns on the way, and heads a part of the batch."""

    def moved(y):
        y = tf.transpose(split(y), (0, 2, 1, 3))
        return tf.reshape(y, (-1, T, WIDTH))

    q, k, v = moved(x), moved(tf.sin(x)), moved(tf.cos(x))
    scores = tf.transpose(tf.matmul(k, q, transpose_b=True), (0, 2, 1))
    return tf.matmul(weights(scores * 0.5), v)


def causal(x):
    places = tf.range(T)
    mask = places[:, tf.newaxis] >= places

    def weights(scores):
        shape = (tf.shape(x)[0], HEADS, T, T)
        known = tf.broadcast_to(mask[tf.newaxis], (B, T, T))[:, tf.newaxis]
        both = tf.logical_and(tf.fill(shape, True), known)
        return tf.nn.softmax(tf.where(both, scores, -1e9))

    return einsum(x, weights)


def biased(x):
    """With a trained number for each pair of places."""
    return einsum(x, lambda scores: tf.nn.softmax(scores + BIAS))


def by_distance(x):
    """With a trained number for each distance, looked up."""
    places = tf.range(T)
    distance = places[:, tf.newaxis] - places + T
    return einsum(
        x,
        lambda scores: tf.nn.softmax(
            scores + tf.transpose(tf.gather(TABLE, distance), (2, 0, 1))
        ),
    )


def by_hand(x):
    def weights(scores):
        raised = tf.exp(scores - tf.reduce_max(scores, -1, keepdims=True))
        return raised / tf.expand_dims(tf.reduce_sum(raised, -1), -1)

    return matrices(x, weights)


def of_logarithms(x):
    return einsum(x, lambda scores: tf.exp(tf.nn.log_softmax(scores)))


def dropped(x):
    """The numbers that are dropped are drawn for all rows."""
    return einsum(
        x,
        lambda scores: tf.nn.experimental.stateless_dropout(
            tf.nn.softmax(scores), 0.3, [3, 4]
        ),
    )


def grouped(x):
    """Two heads of queries share one of keys and values."""
    q = tf.transpose(split(x), (0, 2, 1, 3))
    k, v = (tf.repeat(split(y)[:, :, :1], 2, 2) for y in (tf.sin(x), tf.cos(x)))
    scores = tf.matmul(q, tf.transpose(k, (0, 2, 3, 1)))
    return tf.matmul(tf.nn.softmax(scores), tf.transpose(v, (0, 2, 1, 3)))


def over_queries(x):
    """What is summed up over rows can be cut along another axis alone."""
    return einsum(x, lambda scores: scores - tf.reduce_mean(scores, 2, keepdims=True))


def over_columns(x):
    """Softmax over the queries, which are the last axis."""
    return matrices(
        x,
        lambda scores: tf.transpose(
            tf.nn.softmax(tf.transpose(scores, (0, 2, 1))), (0, 2, 1)
        ),
    )


def of_unknown_rank(x):
    """Values of which only the program knows the shape."""
    q, k, v = (tf.transpose(split(y), (0, 2, 1, 3)) for y in (x, tf.sin(x), tf.cos(x)))
    values = tf.reshape(v, tf.boolean_mask(tf.shape(v), tf.shape(v) > 0))
    return tf.matmul(tf.nn.softmax(tf.matmul(q, k, transpose_b=True)), values)


def running(x):
    """What is not known to keep rows apart is computed as a whole."""
    return einsum(x, lambda scores: tf.cumsum(scores, -2) * 0.1)


def largest(graph, heads=B * HEADS):
    """Names of all floats of T x T numbers for each head, loops included."""
    found = []
    for op in graph.get_operations():
        found += [
            op.name
            for x in op.outputs
            if x.dtype.is_floating and (x.shape.num_elements() or 0) >= heads * T * T
        ]
        found += [
            name for inner, _ in nodes.inner_graphs(op) for name in largest(inner)
        ]
    return found


def cuts(monkeypatch):
    """Records the axes that are cut."""
    found, cut = [], spans._Finder.cut

    def recorded(self, span):
        span = cut(self, span)
        found.append(span.rows and span.outputs[0].tensor.shape[span.rows.cut.axis])
        return span

    monkeypatch.setattr(spans._Finder, "cut", recorded)
    return found


@pytest.mark.parametrize(
    ("function", "batch", "size"),
    [
        (einsum, B, T),
        (einsum, None, T),
        (matrices, B, T),
        pytest.param(matrices, None, T, marks=pytest.mark.slow),
        (causal, B, T),
        pytest.param(causal, None, T, marks=pytest.mark.slow),
        (biased, B, T),
        (by_distance, B, T),
        (by_hand, B, T),
        (of_logarithms, B, T),
        (dropped, B, T),
        (grouped, B, T),
        (over_queries, B, B),
        (over_queries, None, HEADS),
        (over_columns, B, B * HEADS),
        (of_unknown_rank, None, None),
        (running, B, None),
    ],
)
def test_attention_is_computed_by_rows(function, batch, size, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(spans._Finder, "cut", lambda self, span: span)
        whole = emissions.step(function, (batch, *X.shape[1:]), VARIABLES)
        wanted = whole(X)
    found = cuts(monkeypatch)
    ours = emissions.step(function, (batch, *X.shape[1:]), VARIABLES)
    y, grads = ours(X)
    assert set(found) == {size}
    if batch:
        assert largest(whole.get_concrete_function().graph)
        left = largest(ours.get_concrete_function().graph)
        assert bool(left) is (size is None or function is dropped), left
    np.testing.assert_allclose(y, wanted[0], rtol=2**-7, atol=2**-9)
    for mine, other in zip(grads, wanted[1], strict=True):
        mine, other = (np.float32(tf.convert_to_tensor(x)) for x in (mine, other))
        assert np.linalg.norm(mine - other) <= 0.01 * np.linalg.norm(other)
