"""Gradients of the scaled loss, and what becomes of them before an update.

    means, scaled = accumulated(means_and_gradients, batch, accumulate_steps)
    halves = half_squares(scaled)                 # one pass over all gradients
    norm   = global_norm(halves) / scale

A gradient is a tensor, `tf.IndexedSlices` where only rows of a table have one, None
where there is none. It keeps the dtype that it was computed in, float32 or 16 bits, and
whoever adds numbers up reads it as float32: copies of all at once would take as much
memory as the masters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import keras
import tensorflow as tf

from mp_loop.config import limits
from mp_loop.distributed import nests

Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices | None
Gradients: TypeAlias = Sequence[Gradient]
# Means over the rows of a batch by name, float32 []: the loss, and metrics if any.
Means = dict[str, tf.Tensor]
# The squares of smaller numbers may be 0.
_SQUARED_TO_ZERO = 2.0**-63
# (inputs, labels, sample_weight), each batch first; the last may be None.
Batch: TypeAlias = tuple[nests.Nest, nests.Nest, nests.Nest]


def outputs_in_float32(outputs: nests.Nest) -> nests.Nest:
    """Casts what a model returns, nested, to the dtype of losses and metrics.

    Integers, such as numbers of users that are passed on, stay what they are.
    """

    def wide(x: nests.Nest) -> nests.Nest:
        if not tf.is_tensor(x) or x.dtype == tf.float32 or not x.dtype.is_floating:
            return x
        mask, x = getattr(x, "_keras_mask", None), tf.cast(x, tf.float32)
        if mask is not None:
            x._keras_mask = mask
        return x

    return tf.nest.map_structure(wide, outputs)


def micro_batch_size(
    batch: nests.Nest, count: int
) -> tuple[int | tf.Tensor, int | tf.Tensor]:
    """Returns the rows of a batch, and of each of its micro-batches but the last.

    Args:
      batch: tensors whose first axis is the batch.
      count: into how many micro-batches it is split at most.

    Returns:
      Integers where the batch has a static size, else int32 [].
    """
    leaf = next(x for x in keras.tree.flatten(batch) if x is not None)
    rows = leaf.shape[0]
    if rows is None:
        rows = tf.shape(leaf)[0]
        return rows, tf.maximum((rows + count - 1) // count, 1)
    return rows, max((rows + count - 1) // count, 1)


def accumulated(
    means_and_gradients: Callable[[Batch], tuple[Means, Gradients]],
    batch: Batch,
    count: int,
) -> tuple[Means, Gradients]:
    """Returns the means of loss, metrics and gradients over the rows of a batch.

    Args:
      means_and_gradients: of a micro-batch, means over its rows; its dense gradients
        are added up, those of a last micro-batch of fewer rows with less weight.
      batch: any number of rows.
      count: how many micro-batches, or fewer if there are too few rows; 1: the whole
        batch.

    Returns:
      The means by name, float32 [] each, and one gradient for each variable.
    """
    if count == 1:
        return means_and_gradients(batch)
    rows, size = micro_batch_size(batch, count)
    whole, rest = rows // size, rows % size
    static = isinstance(rows, int)

    def micro_batch(i: tf.Tensor | int) -> Batch:
        def part(x: tf.Tensor | None) -> tf.Tensor | None:
            if x is None:
                return None
            if not static or isinstance(i, int):
                return x[i * size : (i + 1) * size]
            begin = [i * size, *[0] * (x.shape.rank - 1)]
            return tf.slice(x, begin, [size, *tf.unstack(tf.shape(x)[1:])])

        return keras.tree.map_structure(part, batch)

    # The first one tells which gradients there are.
    means, first = means_and_gradients(micro_batch(0))

    def add(
        i: int | tf.Tensor,
        sums: list[tf.Tensor],
        weight: float | tf.Tensor | None = None,
    ) -> tuple:
        more_means, more = means_and_gradients(micro_batch(i))
        terms = [*more_means.values(), *_in_float32(more)]
        if weight is not None:
            terms = [weight * x for x in terms]
        return i + 1, [a + b for a, b in zip(sums, terms, strict=True)]

    def add_next(i: tf.Tensor, sums: list[tf.Tensor]) -> tuple:
        weight = None if static else _ratio(tf.minimum(rows - i * size, size), size)
        return add(i, sums, weight)

    number = whole if static else whole + tf.cast(rest > 0, tf.int32)
    sums = [*means.values(), *_in_float32(first)]
    _, sums = tf.while_loop(lambda i, _: i < number, add_next, (tf.constant(1), sums))
    if static and rest:  # apart, because XLA takes no slices of two sizes
        _, sums = add(whole, sums, rest / size)
    total = _ratio(rows, size)
    found = [x / total for x in sums]
    pairs = zip(first, found[len(means) :], strict=True)
    grads = [None if g is None else mean for g, mean in pairs]
    return dict(zip(means, found, strict=False)), grads


def _ratio(rows: int | tf.Tensor, size: int | tf.Tensor) -> tf.Tensor:
    return tf.cast(rows, tf.float32) / tf.cast(size, tf.float32)


def _in_float32(gradients: Gradients) -> list[tf.Tensor]:
    """Returns dense gradients, 0 for None."""
    return [tf.zeros([]) if g is None else dense(to_float32(g)) for g in gradients]


def map_gradient(
    function: Callable[[tf.Tensor], tf.Tensor], gradient: Gradient
) -> Gradient:
    """Applies an elementwise function to a gradient: to the rows of a sparse one."""
    if isinstance(gradient, tf.IndexedSlices):
        rows = function(gradient.values)
        return tf.IndexedSlices(rows, gradient.indices, gradient.dense_shape)
    return None if gradient is None else function(gradient)


def to_float32(gradient: Gradient) -> Gradient:
    """Casts a gradient, or the rows of a sparse one, from 16 bits to float32."""
    return map_gradient(lambda g: tf.cast(g, tf.float32), gradient)


def as_computed(gradient: Gradient) -> Gradient:
    """Returns a gradient without the cast to float32 that it ends in, if it does.

    So does that of a master which a layer rounds where it multiplies by it.
    """
    if not isinstance(gradient, tf.Tensor) or tf.executing_eagerly():
        return gradient
    made_by, given = gradient.op.type, gradient.op.inputs
    if made_by == "Cast" and given[0].dtype in (tf.float16, tf.bfloat16):
        return given[0]
    if made_by == "Reshape" and (narrow := as_computed(given[0])) is not given[0]:
        return tf.reshape(narrow, given[1])
    return gradient


def dense(gradient: Gradient) -> tf.Tensor | None:
    """Adds up the rows of a sparse gradient, in float32."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.convert_to_tensor(to_float32(gradient))
    return gradient


def values(gradient: tf.Tensor | tf.IndexedSlices) -> tf.Tensor:
    """Returns the numbers of a gradient in float32, whichever way it holds them."""
    sparse = isinstance(gradient, tf.IndexedSlices)
    return tf.cast(gradient.values if sparse else gradient, tf.float32)


def half_squares(gradients: Gradients) -> tf.Tensor:
    """Returns half the sum of squares of each gradient, 0 for None, float32 [n]."""
    halves = [0.0 if g is None else tf.nn.l2_loss(values(g)) for g in gradients]
    return tf.stack(halves) if halves else tf.zeros([0])


def told_by_squares(
    from_float16: Sequence[bool], needs_norm: bool, min_scale: float
) -> list[bool]:
    """Tells of each gradient whether a finite sum of squares proves it finite.

    Always where an infinite norm skips the step anyway. Else for float16 numbers:
    their squares cannot overflow a float32 sum, nor can dividing them by a scale
    that is not tiny, so that one pass over them tells all.

    Args:
      from_float16: for each gradient, whether it was a float16 number.
      needs_norm: whether an infinite norm of finite gradients skips the step.
      min_scale: the smallest scale that they are divided by.
    """
    summable = float(tf.float16.max) / min_scale < limits.LARGEST
    return [needs_norm or (is_float16 and summable) for is_float16 in from_float16]


def bounds(
    scaled_grads: Gradients, halves: tf.Tensor, told_by_squares: Sequence[bool]
) -> tf.Tensor:
    """Returns what no number of each gradient is larger than, float32 [n].

    Args:
      scaled_grads: n gradients.
      halves: their `half_squares`.
      told_by_squares: for each gradient, whether the root of its sum of squares will
        do, which may be inf for finite numbers; the others take another pass.

    Returns:
      Magnitudes; inf where a number is.
    """
    roots = tf.sqrt(2.0 * halves) + _SQUARED_TO_ZERO
    pairs = zip(scaled_grads, told_by_squares, strict=True)
    told = [grad is None or by_squares for grad, by_squares in pairs]
    if all(told):
        return roots
    return tf.stack(
        [
            roots[i] if told[i] else tf.reduce_max(tf.abs(values(grad)))
            for i, grad in enumerate(scaled_grads)
        ]
    )


def each_finite(
    halves: tf.Tensor,
    bounds: tf.Tensor,
    scale: tf.Tensor,
    told_by_squares: Sequence[bool],
) -> tf.Tensor:
    """Tells of each gradient whether it is finite once divided by the scale, bool [n].

    Args:
      halves: `half_squares` of n gradients; NaN where a number is.
      bounds: their `bounds`.
      scale: float32 [].
      told_by_squares: as for `bounds`.
    """
    squares = tf.math.is_finite(halves)
    if all(told_by_squares):
        return squares
    # A maximum may pass a NaN over.
    numbers = tf.math.is_finite(bounds / scale) & ~tf.math.is_nan(halves)
    return tf.where(list(told_by_squares), squares, numbers)


def global_norm(halves: tf.Tensor) -> tf.Tensor:
    """Returns the norm of all gradients from their `half_squares`, float32 []."""
    return tf.sqrt(2.0 * tf.reduce_sum(halves))


def clip_factor(norm: tf.Tensor, clip_norm: float) -> tf.Tensor | None:
    """Returns what clipping multiplies gradients by, float32 []; None: no clipping.

    Args:
      norm: float32 [], of all gradients; finite or not.
      clip_norm: the largest norm allowed; 0: any.
    """
    return tf.where(norm > clip_norm, clip_norm / norm, 1.0) if clip_norm else None
