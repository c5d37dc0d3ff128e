"""Softmax cross-entropy of 16-bit logits, computed in float32.

    losses = crossentropy.sparse(labels, logits)      # [n], [n, classes] -> [n]

Over a vocabulary, float32 logits and their float32 gradient would be the largest
tensors of a step. Here the forward pass holds them for a block of rows at a time, and
the backward pass, one loop that XLA compiles, for none.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

BLOCK = 2**20
"""Logits of a block of rows, at most, unless a row has more: 4 MiB in float32."""


def fits(labels: Any, logits: Any) -> bool:
    """Tells whether `of_classes` takes these."""
    if not all(isinstance(x, tf.Tensor) for x in (labels, logits)):
        return False
    if logits.dtype not in (tf.float16, tf.bfloat16) or not logits.shape.rank:
        return False
    shapes = [logits.shape[:-1], [*logits.shape[:-1], 1]]
    known = labels.shape.rank is not None and logits.shape[-1] is not None
    return known and any(map(labels.shape.is_compatible_with, shapes))


def of_classes(
    labels: tf.Tensor, logits: tf.Tensor, ignored: int | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes what `keras.losses.sparse_categorical_crossentropy` does.

    Args:
      labels: class numbers, of any dtype, [...] or [..., 1].
      logits: 16 bits, [..., classes], perhaps with a `_keras_mask`.
      ignored: a label whose loss is 0 and masked, or None.

    Returns:
      The losses, float32 [...]; and a tensor that stands for the logits, with their
      mask.
    """
    labels = tf.reshape(labels, tf.shape(logits)[:-1])
    stand_in = tf.zeros([])
    if hasattr(logits, "_keras_mask"):
        stand_in._keras_mask = logits._keras_mask
    if ignored is None:
        return sparse(labels, logits), stand_in
    valid = labels != tf.cast(ignored, labels.dtype)
    losses = tf.where(valid, sparse(tf.where(valid, labels, 0), logits), 0.0)
    losses._keras_mask = valid
    return losses, stand_in


def sparse(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Computes the cross-entropy of each row.

    Args:
      labels: class numbers, of any dtype, [...].
      logits: float16 or bfloat16, [..., classes].

    Returns:
      `log(sum(exp(logits))) - logits[label]`, float32 [...]. The gradient of `logits`
      is rounded once, to their dtype.
    """
    labels = tf.cast(labels, tf.int32)

    @tf.custom_gradient
    def compute(logits: tf.Tensor) -> Any:
        bits = tf.bitcast(logits, tf.uint16)  # of which XLA makes no float32 copy
        rows = tf.reshape(bits, (-1, logits.shape[-1]))
        found = tf.reshape(_sums(rows, logits.dtype), [*_shape(labels), 2])
        largest, log_sums = tf.unstack(found, axis=-1)
        chosen = tf.gather(bits, labels, batch_dims=labels.shape.rank)
        chosen = tf.cast(tf.bitcast(chosen, logits.dtype), tf.float32)

        def gradient(grads: tf.Tensor) -> tf.Tensor:
            return _backward(labels, logits, largest, log_sums, grads)

        return largest - chosen + log_sums, gradient

    return compute(logits)


def _shape(tensor: tf.Tensor) -> list[Any]:
    """The sizes of a tensor, numbers where they are known."""
    known, found = tensor.shape.as_list(), tf.shape(tensor)
    return [found[i] if size is None else size for i, size in enumerate(known)]


def _sums(bits: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Adds the exponentials of each row up, block by block.

    Args:
      bits: of the logits, uint16 [n, classes].
      dtype: of the logits.

    Returns:
      float32 [n, 2]: `largest`, the largest logit of each row, and
      `log(sum(exp(logits - largest)))`.
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
        rows = tf.stack([largest, tf.math.log(sums)], -1)
        places = first + tf.range(size)
        found = tf.tensor_scatter_nd_update(found, places[:, tf.newaxis], rows)
        return start + size, found

    nothing = tf.zeros([count, 2])
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
    largest: tf.Tensor,
    log_sums: tf.Tensor,
    grads: tf.Tensor,
) -> tf.Tensor:
    """Returns the gradient of the logits: `(softmax - one_hot) * grads`."""
    # With the sums of the forward pass it is one loop; a softmax would be stored.
    wide = tf.cast(logits, tf.float32)  # 16 bits -> float32
    softmax = tf.exp(wide - largest[..., tf.newaxis] - log_sums[..., tf.newaxis])
    chosen = tf.one_hot(labels, logits.shape[-1])
    grad = (softmax - chosen) * grads[..., tf.newaxis]
    return tf.cast(grad, logits.dtype)  # float32 -> 16 bits
