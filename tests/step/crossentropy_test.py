"""Softmax cross-entropy of 16-bit logits."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.hardware import devices
from mp_loop.operations import nodes
from mp_loop.step import crossentropy, loss_names, losses

HALVES = {"float16": tf.float16, "bfloat16": tf.bfloat16}
RANDOM = np.random.default_rng(0)


def logits_of(shape, dtype, spread=4.0):
    return tf.cast(RANDOM.normal(size=shape) * spread, HALVES[dtype])


def gradients(function, logits):
    @tf.function(autograph=False)
    def compute(logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            found = function(logits)
            total = tf.reduce_sum(found * tf.range(1.0, found.shape[0] + 1.0))
        return found, tape.gradient(total, logits)

    return compute(logits)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows, classes", [(1, 3), (7, 11), (64, 2), (13, 300)])
def test_values_and_gradients(monkeypatch, dtype, rows, classes):
    """Of one block, of several, and of a last one that overlaps."""
    monkeypatch.setattr(crossentropy, "BLOCK", 1000)
    logits = logits_of((rows, classes), dtype)
    labels = RANDOM.integers(0, classes, rows)
    found, grad = gradients(lambda x: crossentropy.sparse(labels, x), logits)
    exact = tf.cast(logits, tf.float64)
    softmax = tf.nn.softmax(exact)
    expected = -tf.math.log(tf.gather(softmax, labels, batch_dims=1))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    factors = tf.range(1.0, rows + 1.0)[:, None]
    difference = softmax - tf.one_hot(labels, classes, dtype=tf.float64)
    rounded = tf.cast(difference * tf.cast(factors, tf.float64), logits.dtype)
    assert grad.dtype == logits.dtype
    ulp = 2.0 ** (-10 if dtype == "float16" else -7)  # a tie may round either way
    grad, rounded = (np.asarray(x, np.float64) for x in (grad, rounded))
    np.testing.assert_allclose(grad, rounded, rtol=ulp, atol=1e-7 * rows)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_unknown_number_of_rows(monkeypatch, compiled):
    monkeypatch.setattr(crossentropy, "BLOCK", 4 * 17)
    logits = logits_of((5, 3, 17), "bfloat16")
    labels = RANDOM.integers(0, 17, (5, 3))

    @tf.function(autograph=False, jit_compile=compiled)
    def compute(labels, logits):
        return crossentropy.sparse(labels, logits)

    of_labels = tf.TensorSpec((None, 3), tf.int64)
    of_logits = tf.TensorSpec((None, 3, 17), tf.bfloat16)
    of_any = compute.get_concrete_function(of_labels, of_logits)
    found = of_any(tf.constant(labels), logits)
    exact = crossentropy.sparse(labels, logits)
    np.testing.assert_allclose(found, exact, rtol=2e-6, atol=1e-6)
    empty = of_any(tf.zeros((0, 3), tf.int64), tf.zeros((0, 3, 17), tf.bfloat16))
    assert empty.shape == (0, 3)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_overflow_is_seen(bad):
    logits = tf.constant([[0.0, bad], [1.0, 2.0]], tf.float16)
    found, grad = gradients(lambda x: crossentropy.sparse([0, 1], x), logits)
    assert not np.isfinite(found[0]) and np.isfinite(found[1])
    assert np.isnan(np.asarray(grad[0], np.float32)).any()
    assert np.isfinite(np.asarray(grad[1], np.float32)).all()


def test_a_class_that_is_ruled_out():
    logits = tf.constant([[0.0, -np.inf, 1.0]], tf.bfloat16)
    found, grad = gradients(lambda x: crossentropy.sparse([2], x), logits)
    np.testing.assert_allclose(found, np.log(1 + np.exp(-1.0)), rtol=1e-6)
    assert float(grad[0, 1]) == 0.0


SPARSE = keras.losses.SparseCategoricalCrossentropy
KINDS = {
    "object": SPARSE(from_logits=True),
    "sum": SPARSE(from_logits=True, reduction="sum"),
    "none": SPARSE(from_logits=True, reduction="none"),
    "ignored": SPARSE(from_logits=True, ignore_class=0),
    "padding": SPARSE(from_logits=True, ignore_class=-100),
    "function": loss_names.make("sparse_categorical_crossentropy", from_logits=True),
}


@pytest.mark.parametrize("weighted", [None, "rows", "tokens"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_as_keras_of_float32_copies(kind, masked, weighted):
    loss = losses.of(KINDS[kind])
    labels = RANDOM.integers(0, 5, (4, 6))
    if kind == "padding":
        labels[1, 2:] = -100
    labels = tf.constant(labels)
    weight = {"rows": RANDOM.random((4, 1)), "tokens": RANDOM.random((4, 6))}.get(
        weighted
    )
    weight = None if weight is None else tf.constant(weight, tf.float32)
    mask = tf.constant(RANDOM.random((4, 6)) > 0.3)

    def with_mask(x):
        if masked:
            x._keras_mask = mask
        return x

    narrow = logits_of((4, 6, 5), "bfloat16")
    wide = with_mask(tf.cast(narrow, tf.float32))
    ours, exact = loss(labels, with_mask(narrow), weight), loss(labels, wide, weight)
    np.testing.assert_allclose(ours, exact, rtol=1e-6)


def decoder(vocabulary=48, tokens=16, width=8):
    inputs = keras.Input((tokens,), dtype="int32")
    x = keras.layers.Embedding(vocabulary, width)(inputs)
    x = x + keras.layers.Dense(width, activation="gelu")(x)
    return keras.Model(inputs, keras.layers.Dense(vocabulary, use_bias=False)(x))


def tensors_of(graph):
    for op in graph.get_operations():
        yield from op.outputs
        for inner, _ in nodes.inner_graphs(op):
            yield from tensors_of(inner)


def stored(graph, shape):
    """Float32 tensors of a shape that something reads, but for what is one loop."""
    return [
        tensor.name
        for tensor in tensors_of(graph)
        if tensor.dtype == tf.float32
        and tensor.shape == shape
        and tensor.consumers()
        and "backward" not in tensor.graph.name
    ]


@pytest.mark.parametrize("how", ["step", "accumulated", "recomputed", "fit"])
def test_no_float32_logits_of_all_tokens(monkeypatch, how):
    """Neither forward nor backward, whatever takes the step."""
    monkeypatch.setattr(crossentropy, "BLOCK", 16 * 48)
    monkeypatch.setattr(devices, "multiplies_slowly", lambda dtype: False)
    model, loss = decoder(), SPARSE(from_logits=True)
    x, y = RANDOM.integers(0, 48, (2, 4, 16))
    if how == "fit":
        model = mp_loop.for_fit(model, "bfloat16")
        model.compile("sgd", loss)
        model.train_on_batch(x, y)
        step, size = model.mixed_precision.step, 4
    else:
        count = 2 if how == "accumulated" else 1
        step = mp_loop.TrainStep(
            model,
            "sgd",
            loss,
            "bfloat16",
            accumulate_steps=count,
            recompute=how == "recomputed",
        )
        size = 4 // count
    graph = step.graph(
        tf.TensorSpec((4, 16), tf.int64), tf.TensorSpec((4, 16), tf.int64)
    )
    assert stored(graph, (size, 16, 48)) == stored(graph, (size * 16, 48)) == []
    assert [x for x in tensors_of(graph) if x.shape == (size, 16, 48)]
