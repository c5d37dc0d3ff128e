"""Products of 16-bit operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from mp_loop.operations import sums

Product = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def multiply(
    product: Product, x: tf.Tensor, y: tf.Tensor, in_float32: bool
) -> tf.Tensor:
    """Multiplies two 16-bit tensors.

    Args:
      product: a bilinear function.
      x: 16 bits.
      y: of the same dtype.
      in_float32: whether to multiply float32 copies and round once, for a processor
        without 16-bit units.

    Returns:
      The product in the dtype of `x`. Only `x` and `y` are kept for the backward pass.
    """
    if not in_float32:
        return product(x, y)
    dtype = x.dtype

    @tf.custom_gradient
    def compute(x: tf.Tensor, y: tf.Tensor) -> Any:
        def gradient(dz: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # Cast anew, late: the forward pass's float32 copies are gone by now.
            with tf.control_dependencies([dz]):
                wide = [tf.cast(tf.identity(t), tf.float32) for t in (x, y)]
            with tf.GradientTape() as tape:
                tape.watch(wide)
                # A bilinear function's gradients need not what it makes: pruned.
                z = product(*wide)
            grads = tape.gradient(z, wide, tf.cast(dz, tf.float32))
            return tuple(tf.cast(grad, dtype) for grad in grads)

        wide = product(tf.cast(x, tf.float32), tf.cast(y, tf.float32))
        return tf.cast(wide, dtype), gradient

    return compute(x, y)


def matrices(adjoint_x: bool, adjoint_y: bool) -> Product:
    """Makes `BatchMatMulV2` of two operands that may broadcast against each other."""

    def product(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        if y.shape.rank == 2 and not adjoint_x:  # one product, and one sum over rows
            rows = tf.reshape(
                x, (-1, y.shape[1 if adjoint_y else 0] or tf.shape(x)[-1])
            )
            z = tf.matmul(rows, y, transpose_b=adjoint_y)
            shape = tf.concat([tf.shape(x)[:-1], tf.shape(z)[-1:]], 0)
            return tf.ensure_shape(tf.reshape(z, shape), [*x.shape[:-1], z.shape[-1]])
        return broadcast(x, y)

    @tf.custom_gradient
    def broadcast(x: tf.Tensor, y: tf.Tensor) -> Any:
        z = _matmul(x, y, adjoint_x, adjoint_y)

        def gradient(dz: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            if adjoint_x:
                dx = _matmul(y, dz, adjoint_y, True)
            else:
                dx = _matmul(dz, y, False, not adjoint_y)
            if adjoint_y:
                dy = _matmul(dz, x, True, adjoint_x)
            else:
                dy = _matmul(x, dz, not adjoint_x, False)
            return sums.unbroadcast(dx, x), sums.unbroadcast(dy, y)

        return z, gradient

    return product


def _matmul(x: tf.Tensor, y: tf.Tensor, adjoint_x: bool, adjoint_y: bool) -> tf.Tensor:
    return tf.raw_ops.BatchMatMulV2(x=x, y=y, adj_x=adjoint_x, adj_y=adjoint_y)


def of_operands(
    call: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]],
    inputs: Sequence[tf.Tensor],
    places: tuple[int, int],
) -> Product:
    """Makes a function of two operands of an operation that has others."""

    def product(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        given = {places[0]: x, places[1]: y}
        return call([given.get(i, t) for i, t in enumerate(inputs)])[0]

    return product
