"""A gradient of one's own, seen by tapes and by graphs, without needless zeros."""

import pytest
import tensorflow as tf

from mp_loop.operations import differentiation


@differentiation.custom_gradient
def tripled(x, unused):
    """The gradients are five times what they would be."""
    y = 3 * x

    def gradient(dy, dz):
        return 15 * dy + 0 * dz, None

    return (y, unused + 1), gradient


def tripled_twice(x):
    y, _ = tripled(x, tf.ones([]))
    return tripled(y, tf.ones([]))[0]


def in_loop(x):
    return tf.while_loop(
        lambda i, _: i < 2, lambda i, x: (i + 1, tripled(x, x)[0]), (0, x)
    )[1]


@pytest.mark.parametrize(
    "function", [tripled_twice, in_loop], ids=["plain", "in a loop"]
)
@pytest.mark.parametrize("outside", [False, True], ids=["traced", "eager"])
def test_the_gradient_is_its_own(function, outside):
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = called(x)
        return tape.gradient(y, x)

    called = tf.function(function) if outside else function
    traced = gradient if outside else tf.function(gradient)
    assert traced(tf.constant(1.0)).numpy() == 15**2


def test_eagerly_the_gradient_is_its_own():
    x = tf.constant(1.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tripled_twice(x)
    assert tape.gradient(y, x).numpy() == 15**2


def test_the_gradient_of_a_gradient_goes_through_what_was_made_inside():
    @differentiation.custom_gradient
    def cubed(x):
        square = x * x
        return x * square, lambda dy: 3 * square * dy

    @tf.function
    def second(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = cubed(x)
            dx = inner.gradient(y, x)
        return outer.gradient(dx, x)

    assert second(tf.constant(2.0)).numpy() == 12


def test_the_backward_pass_makes_no_zeros_for_operands():
    @differentiation.custom_gradient
    def product(x, y):
        return x * y, lambda dz: (dz * y, dz * x)

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = product(x, x)
        return tape.gradient(z, x, x)

    graph = gradient.get_concrete_function(tf.TensorSpec([None])).graph
    types = [op.type for op in graph.get_operations()]
    assert types.count("Fill") + types.count("ZerosLike") + types.count("Const") == 0
