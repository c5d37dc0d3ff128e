"""A function of rows, computed some rows at a time, gives the same gradients."""

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.operations import again, blocks

HEADS, WIDTH = 3, 2


def attend(q, k, v, mask):
    """Attention without a softmax: whole numbers stay whole, and sums exact."""
    scores = tf.einsum("btnh,bsnh->bnts", q, k)
    return tf.einsum("bnts,bsnh->btnh", tf.where(mask, scores, 1.0), v)


def numbers(size, dtype):
    random = np.random.default_rng(size)
    shape = (2, size, HEADS, WIDTH)
    q, k, v = random.integers(-3, 4, (3, *shape)).astype(np.float32)
    mask = random.random((1, 1, size, size)) < 0.7
    return [*(tf.cast(x, dtype) for x in (q, k, v)), tf.constant(mask)]


def gradients(function, tensors):
    with tf.GradientTape() as tape:
        tape.watch(tensors[:3])
        y = function(*tensors)
        loss = tf.reduce_sum(y * tf.cast(tensors[0] + 1, y.dtype))
    return [y, *tape.gradient(loss, tensors[:3])]


def assert_same(ours, wanted):
    for mine, other in zip(ours, wanted, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("size", "block"), [(12, 4), (13, 4), (13, 12), (5, 1), (4, 4)]
)
def test_blocks_give_the_bits_of_the_whole(size, block, compiled):
    tensors = numbers(size, tf.float32)
    cut = blocks.Cut(1, size, block)
    axes = [1, None, None, 2]

    @tf.function(jit_compile=compiled, autograph=False)
    def ours(*tensors):
        with again.for_xla() if compiled else tf.name_scope("plain"):
            return gradients(
                lambda *x: blocks.run(attend, x, axes, cut, tf.float32), tensors
            )

    assert_same(ours(*tensors), gradients(attend, tensors))


def test_other_axes_may_be_cut():
    """Keys and values of other lengths; the examples of a batch."""
    q, k, v, mask = numbers(6, tf.float32)
    tensors = [
        q,
        tf.concat([k, k + 1], 1),
        tf.concat([v, v], 1),
        tf.tile(mask, [1, 1, 1, 2]),
    ]
    wanted = gradients(attend, tensors)
    for axis, axes in ((0, [0, 0, 0, None]), (2, [2, 2, 2, None])):
        cut = blocks.Cut(axis, q.shape[axis], 1)
        ours = gradients(
            lambda *x, c=cut, a=axes: blocks.run(attend, x, a, c, tf.float32), tensors
        )
        assert_same(ours, wanted)


def test_sums_over_blocks_are_float32():
    """A sum of many 16-bit gradients would stop growing."""
    ones = tf.ones((600, 1), tf.bfloat16)
    weight = tf.ones((1, 1), tf.bfloat16)
    cut = blocks.Cut(0, 600, 1)

    def found(w):
        with tf.GradientTape() as tape:
            tape.watch(w)
            y = blocks.run(tf.matmul, [ones, w], [0, None], cut, tf.bfloat16)
            loss = tf.reduce_sum(tf.cast(y, tf.float32))
        return tape.gradient(loss, w)

    assert float(found(weight)[0, 0]) == 600.0


def test_lengths_of_a_batch_may_be_unknown():
    tensors = numbers(8, tf.float32)
    specs = [tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in tensors]
    cut = blocks.Cut(1, 8, 3)

    @tf.function(input_signature=specs, autograph=False)
    def ours(*tensors):
        axes = [1, None, None, 2]
        return gradients(
            lambda *x: blocks.run(attend, x, axes, cut, tf.float32), tensors
        )

    assert_same(ours(*tensors), gradients(attend, tensors))


def test_what_is_not_watched_has_no_gradient():
    q, k, v, mask = numbers(6, tf.float32)
    cut = blocks.Cut(1, 6, 2)
    bias = tf.where(mask, 0.0, -1.0)
    with tf.GradientTape() as tape:
        tape.watch([q, bias])
        y = blocks.run(
            lambda q, bias: tf.einsum(
                "btnh,bnts->btnh", q, bias + tf.zeros((2, HEADS, 1, 1))
            ),
            [q, bias],
            [1, 2],
            cut,
            tf.float32,
            [True, False],
        )
    dq, dbias = tape.gradient(y, [q, bias])
    assert dq is not None
    assert dbias is None


@pytest.mark.parametrize(
    ("size", "made", "taken", "rows"),
    [
        (1024, 1024**2, 3 * 64 * 1024, 128),
        (1000, 1000**2, 3 * 64 * 1000, 125),
        (1021, 1021**2, 3 * 64 * 1021, 171),
        (8, 16, 8, 4),
        (7, 7 * 7, 7, 1),
        (5, 9, 4, 2),
    ],
)
def test_a_block_makes_no_more_than_is_taken(size, made, taken, rows):
    """All are of one size where half as many rows or more allow it."""
    assert blocks.rows(size, made, taken) == rows
    assert made * rows <= taken * size
