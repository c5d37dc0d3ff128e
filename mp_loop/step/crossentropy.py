"""Softmax cross-entropy of 16-bit logits, computed in float32.

    losses = crossentropy.sparse(labels, logits)      # [n], [n, classes] -> [n]

Over a vocabulary, float32 logits and their float32 gradient would be the largest
tensors of a step. Here the forward pass holds them for a block of rows at a time, and
the backward pass, one loop that XLA compiles, for none.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from mp_loop.distributed import nests
from mp_loop.operations import differentiation

BLOCK = 2**20
"""Logits of a block of rows, at most, unless a row has more: 4 MiB in float32."""


def fits(labels: nests.Nest, logits: nests.Nest) -> bool:
    """Tells whether `of_classes` takes these."""
    if not all(isinstance(x, tf.Tensor) for x in (labels, logits)):
        return False
    if logits.dtype not in (tf.float16, tf.bfloat16) or not logits.shape.rank:
        return False
    shapes = [logits.shape[:-1], [*logits.shape[:-1], 1]]
    known = labels.shape.rank is not None and logits.shape[-1] is not None
    return known and any(map(labels.shape.is_compatible_with, shapes))


def of_classes(
    labels: tf.Tensor,
    logits: tf.Tensor,
    ignored: int | None = None,
    smoothing: float = 0.0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes what `keras.losses.sparse_categorical_crossentropy` does.

    Args:
      labels: class numbers, of any dtype, [...] or [..., 1].
      logits: 16 bits, [..., classes], perhaps with a `_keras_mask`.
      ignored: a label whose loss is 0 and masked, or None.
      smoothing: as for `sparse`.

    Returns:
      The losses, float32 [...]; and a tensor that stands for the logits, with their
      mask.
    """
    labels = tf.reshape(labels, tf.shape(logits)[:-1])
    stand_in = tf.zeros([])
    if hasattr(logits, "_keras_mask"):
        stand_in._keras_mask = logits._keras_mask
    if ignored is None:
        return sparse(labels, logits, smoothing), stand_in
    valid = labels != tf.cast(ignored, labels.dtype)
    losses = sparse(tf.where(valid, labels, 0), logits, smoothing)
    losses = tf.where(valid, losses, 0.0)
    losses._keras_mask = valid
    return losses, stand_in


def sparse(labels: tf.Tensor, logits: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Computes the cross-entropy of each row.

    Args:
      labels: class numbers, of any dtype, [...].
      logits: float16 or bfloat16, [..., classes].
      smoothing: part of a label's weight that is spread over all classes.

    Returns:
      `log(sum(exp(logits))) - logits[label]`, float32 [...]; with smoothing s,
      `(1 - s) * logits[label] + s * mean(logits)` is taken off. The gradient of
      `logits` is rounded once, to their dtype.
    """
    labels = tf.cast(labels, tf.int32)

    @differentiation.custom_gradient
    def compute(
        logits: tf.Tensor,
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        bits = tf.bitcast(logits, tf.uint16)  # of which XLA makes no float32 copy
        rows = tf.reshape(bits, (-1, logits.shape[-1]))
        found = _sums(rows, logits.dtype, with_mean=bool(smoothing))
        found = tf.reshape(found, [*_shape(labels), found.shape[-1]])
        largest, log_sums, *means = tf.unstack(found, axis=-1)
        chosen = tf.gather(bits, labels, batch_dims=labels.shape.rank)
        chosen = tf.cast(tf.bitcast(chosen, logits.dtype), tf.float32)

        def gradient(grads: tf.Tensor) -> tf.Tensor:
            sums = (largest, log_sums)
            return _backward(labels, logits, sums, grads, smoothing)

        losses = largest - chosen + log_sums
        if smoothing:
            losses += smoothing * (chosen - means[0])
        return losses, gradient

    return compute(logits)


def _shape(tensor: tf.Tensor) -> list[int | tf.Tensor]:
    """The sizes of a tensor, numbers where they are known."""
    known, found = tensor.shape.as_list(), tf.shape(tensor)
    return [found[i] if size is None else size for i, size in enumerate(known)]


def _sums(bits: tf.Tensor, dtype: tf.DType, with_mean: bool) -> tf.Tensor:
    """Adds the exponentials of each row up, block by block.

    Args:
      bits: of the logits, uint16 [n, classes].
      dtype: of the logits.
      with_mean: whether their mean is wanted, too.

    Returns:
      float32 [n, 2 or 3]: `largest`, the largest logit of each row,
      `log(sum(exp(logits - largest)))`, and the mean.
    """
    count, classes = _shape(bits)
    known = isinstance(count, int)  # then so is the size, which XLA needs of slices
    most = max(1, BLOCK // classes)
    size = min(most, count) if known else tf.minimum(most, count)

    def step(start: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        first = tf.minimum(start, count - size)  # the last block overlaps another
        block = tf.bitcast(tf.slice(bits, [first, 0], [size, classes]), dtype)
        block = tf.cast(block, tf.float32)  # 16 bits -> float32
        largest = tf.reduce_max(block, -1)
        sums = tf.reduce_sum(tf.exp(block - largest[:, tf.newaxis]), -1)
        rows = [largest, tf.math.log(sums)]
        if with_mean:
            rows.append(tf.reduce_mean(block, -1))
        places = first + tf.range(size)
        rows = tf.stack(rows, -1)
        found = tf.tensor_scatter_nd_update(found, places[:, tf.newaxis], rows)
        return start + size, found

    nothing = tf.zeros([count, 3 if with_mean else 2])
    if known and size == count:
        return step(tf.constant(0), nothing)[1]
    _, found = tf.while_loop(
        lambda start, _: start < count,
        step,
        (tf.constant(0), nothing),
        parallel_iterations=1,
    )
    return found


@tf.function(jit_compile=True, autograph=False)
def _backward(
    labels: tf.Tensor,
    logits: tf.Tensor,
    sums: tuple[tf.Tensor, tf.Tensor],
    grads: tf.Tensor,
    smoothing: float,
) -> tf.Tensor:
    """Returns the gradient of the logits: `(softmax - smoothed one_hot) * grads`."""
    # With the sums of the forward pass it is one loop; a softmax would be stored.
    largest, log_sums = sums
    classes = logits.shape[-1]
    wide = tf.cast(logits, tf.float32)  # 16 bits -> float32
    softmax = tf.exp(wide - largest[..., tf.newaxis] - log_sums[..., tf.newaxis])
    spread = smoothing / classes
    chosen = tf.one_hot(labels, classes, 1 - smoothing + spread, spread)
    grad = (softmax - chosen) * grads[..., tf.newaxis]
    return tf.cast(grad, logits.dtype)  # float32 -> 16 bits
