"""Operations in 16 bits whose gradients add up: these sums are of float32.

Whatever a tensor was broadcast to, repeated or looked up for, its gradient is a sum
over all these places. In 16 bits such a sum loses a third of its value at 32,768 rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from mp_loop.operations import again, differentiation


def add(x: tf.Tensor, y: tf.Tensor, narrow: tf.DType, sign: int = 1) -> tf.Tensor:
    """Returns `x + y` (or `x - y`) in 16 bits.

    Args:
      x: of `narrow`, or float32.
      y: likewise, of a shape that broadcasts against `x`.
      narrow: dtype of the sum.
      sign: 1 or -1.

    Returns:
      A tensor whose gradients have the dtypes of `x` and `y`.
    """

    @differentiation.custom_gradient
    def compute(x: tf.Tensor, y: tf.Tensor) -> again.WithGradient:
        a, b = tf.cast(x, narrow), tf.cast(y, narrow)
        z = a + b if sign > 0 else a - b

        def gradient(dz: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return unbroadcast(dz, x), unbroadcast(dz if sign > 0 else -dz, y)

        return z, gradient

    return compute(x, y)


def unbroadcast(dz: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Adds up, in float32, the gradient of what was broadcast.

    Args:
      dz: gradient of a tensor.
      x: what was broadcast to the shape of `dz`.

    Returns:
      The gradient of `x`, in its dtype.
    """

    def summed() -> tf.Tensor:
        _, axes = tf.raw_ops.BroadcastGradientArgs(s0=tf.shape(dz), s1=tf.shape(x))
        wide = tf.reduce_sum(tf.cast(dz, tf.float32), axes)  # 16 bits -> float32
        return tf.cast(tf.reshape(wide, tf.shape(x)), x.dtype)

    if dz.shape.rank is None or dz.shape.rank != x.shape.rank:
        return summed()
    if dz.shape.is_fully_defined() and dz.shape == x.shape:
        return tf.cast(dz, x.dtype)
    if dz.shape.as_list() != x.shape.as_list():
        return summed()
    same = tf.reduce_all(tf.equal(tf.shape(dz), tf.shape(x)))
    return tf.cond(same, lambda: tf.cast(dz, x.dtype), summed)


def in_float32_backward(
    call: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]],
    inputs: Sequence[tf.Tensor],
    narrow: tf.DType,
) -> list[tf.Tensor]:
    """Runs an operation in 16 bits, and its gradient in float32.

    Args:
      call: of the operation's operands, in one floating dtype.
      inputs: its operands; those of float32 are rounded, others than floats are not.
      narrow: dtype of the forward pass.

    Returns:
      What it makes. The gradients have the dtypes of `inputs`.
    """
    places = [i for i, x in enumerate(inputs) if x.dtype in (narrow, tf.float32)]

    def cast(floats: Sequence[tf.Tensor], dtype: tf.DType) -> list[tf.Tensor]:
        given = dict(zip(places, floats, strict=True))
        return [
            tf.cast(given[i], dtype) if i in given else x for i, x in enumerate(inputs)
        ]

    @differentiation.custom_gradient
    def compute(*floats: tf.Tensor) -> again.WithGradient:
        outputs = call(cast(floats, narrow))

        def gradient(*grads: tf.Tensor) -> list[tf.Tensor | None]:
            # What this makes is not used, and pruned, where a gradient needs it not.
            wide = [tf.cast(x, tf.float32) for x in floats]
            with tf.GradientTape() as tape:
                tape.watch(wide)
                given = dict(zip(places, wide, strict=True))
                again = call([given.get(i, x) for i, x in enumerate(inputs)])
            grads = [tf.cast(grad, tf.float32) for grad in grads]
            found = tape.gradient(again, wide, grads)
            return [
                None if g is None else tf.cast(tf.convert_to_tensor(g), x.dtype)
                for g, x in zip(found, floats, strict=True)
            ]

        return outputs, gradient

    return tf.nest.flatten(compute(*(inputs[i] for i in places)))
