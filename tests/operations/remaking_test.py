"""An activation between two products is made again in the backward pass."""

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.operations import remaking
from tests.support import emissions

pytestmark = pytest.mark.usefixtures("same_bits")

ROWS, WIDTH = 40, 8
RANDOM = np.random.default_rng(0)
UP, GATE = (
    tf.Variable(RANDOM.normal(size=(WIDTH, 4 * WIDTH)).astype(np.float32))
    for _ in range(2)
)
DOWN = tf.Variable(RANDOM.normal(size=(4 * WIDTH, WIDTH)).astype(np.float32))
VARIABLES = (UP, GATE, DOWN)
X = tf.cast(RANDOM.normal(size=(ROWS, WIDTH)).astype(np.float32), tf.bfloat16)


def feed_forward(x):
    return tf.nn.gelu(x @ UP) @ DOWN


def gated(x):
    return (tf.nn.silu(x @ GATE) * (x @ UP)) @ DOWN


def normalized(x):
    """Batches of rows, as layers of sequences have them."""
    hidden = tf.reshape(x @ UP, (4, -1, 4 * WIDTH))
    return tf.matmul(tf.math.l2_normalize(hidden, -1), DOWN)


def in_rows(x):
    """As `Dense` multiplies a sequence."""
    hidden = tf.nn.gelu(tf.reshape(x @ UP, (-1, 4, 4 * WIDTH)))
    return tf.reshape(hidden, (-1, 4 * WIDTH)) @ DOWN


def like_dense(x):
    """What Keras does where the size of the batch is known when it is there alone."""
    hidden = tf.nn.gelu(tf.reshape(x @ UP, (-1, 4, 4 * WIDTH)))
    return tf.tensordot(hidden, DOWN, 1)


def in_a_loop(x):
    def turn(i, x):
        return i + 1, feed_forward(x)

    return tf.while_loop(lambda i, _: i < 3, turn, (0, x), maximum_iterations=3)[1]


def read_twice(x):
    hidden = tf.nn.gelu(x @ UP)
    return hidden @ DOWN + hidden @ tf.transpose(UP)


def of_much(x):
    """What enters is larger by far than what is made of it."""
    return tf.reduce_sum(tf.exp(tf.reshape(x @ UP, (4, 10, -1))), 1) @ DOWN


def by_itself(x):
    """No weight."""
    return tf.matmul(tf.nn.gelu(x @ UP), x @ GATE, transpose_a=True)


# The function, and what of the size of `x @ UP` is kept for the backward pass.
REMADE = [(feed_forward, 1), (gated, 2), (normalized, 1)]
KEPT = [(read_twice, 2), (by_itself, 3)]


@pytest.mark.parametrize("float32_products", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("function", "count"), [*REMADE, *KEPT])
def test_what_enters_is_kept_alone(function, count, compiled, float32_products):
    options = {"compiled": compiled, "float32_products": float32_products}
    step = emissions.step(function, X.shape, VARIABLES, **options)
    left = emissions.kept(step.get_concrete_function().graph, ROWS * 4 * WIDTH)
    assert len(left) == count, left


@pytest.mark.parametrize("function", [feed_forward, in_rows, like_dense])
def test_batches_may_be_of_any_size(function, monkeypatch):
    def nodes_and_gradients():
        step = emissions.step(function, (None, WIDTH), VARIABLES)
        graph = step.get_concrete_function().graph
        return len(graph.get_operations()), step(X)

    count, (y, grads) = nodes_and_gradients()
    monkeypatch.setattr(remaking, "found", lambda plan: frozenset())
    fewer, (same, kept) = nodes_and_gradients()
    assert count > fewer  # it is made once more
    for mine, other in zip([y, *grads], [same, *kept], strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize(
    ("function", "jit_compile"),
    [
        *((x, False) for x in (feed_forward, gated, normalized, in_a_loop, of_much)),
        (gated, True),
        pytest.param(in_a_loop, True, marks=pytest.mark.slow),
    ],
)
def test_the_bits_are_the_same(function, jit_compile, monkeypatch):
    def run():
        step = emissions.step(function, X.shape, VARIABLES, compiled=not jit_compile)
        y, grads = tf.function(step, jit_compile=jit_compile)(X)
        return [y, *grads]

    ours = run()
    monkeypatch.setattr(remaking, "found", lambda plan: frozenset())
    for mine, kept in zip(ours, run(), strict=True):
        np.testing.assert_array_equal(mine, kept)


def test_what_enters_is_not_kept_in_place_of_less(monkeypatch):
    def kept():
        step = emissions.step(of_much, X.shape, VARIABLES)
        return emissions.kept(step.get_concrete_function().graph, 4 * 4 * WIDTH)

    ours = kept()
    monkeypatch.setattr(remaking, "found", lambda plan: frozenset())
    assert len(ours) == len(kept())
