"""Products of 16-bit operands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from mp_loop.operations import again, differentiation, shapes, sums

Product = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Fixed:
    """An operand that is the same in every turn of a loop, rounded before the loop.

    A tensor that is made in a loop is made, and kept for the backward pass, once for
    each turn; the gradient of one from outside is summed in the tensor's own dtype.

    Attributes:
      source: float32, what gets the gradient.
      dtype: of 16 bits, what it is rounded to.
      cast: returns it rounded, stored in `dtype` or in float32, made outside the loop
        and without a gradient.
    """

    source: tf.Tensor
    dtype: tf.DType
    cast: Callable[[tf.DType], tf.Tensor]

    def narrow(self) -> tf.Tensor:
        """Returns it in `dtype`, with a gradient."""
        rounded = self.cast(self.dtype)
        compute = differentiation.custom_gradient(
            lambda source: (rounded, lambda grad: tf.cast(grad, source.dtype))
        )
        return compute(self.source)


def multiply(
    product: Product,
    x: tf.Tensor | Fixed,
    y: tf.Tensor | Fixed,
    in_float32: bool,
    remake: again.Remake | None = None,
) -> tf.Tensor:
    """Multiplies two 16-bit tensors.

    Args:
      product: a bilinear function.
      x: 16 bits.
      y: of the same dtype.
      in_float32: whether to multiply float32 copies and round once, for a processor
        without 16-bit units.
      remake: makes `x` again, for the backward pass.

    Returns:
      The product in the dtype of `x`. Only `x` and `y` are kept for the backward pass;
      `y` alone if `x` can be made again.
    """
    operands = (x, y)
    fixed = any(isinstance(t, Fixed) for t in operands)
    if not in_float32 and not fixed and not remake:
        return product(x, y)
    narrow = x.dtype
    dtype = tf.float32 if in_float32 else narrow

    def cast(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return [
            operand.cast(dtype) if isinstance(operand, Fixed) else tf.cast(t, dtype)
            for operand, t in zip(operands, tensors, strict=True)
        ]

    @differentiation.custom_gradient
    def compute(*tensors: tf.Tensor) -> again.WithGradient:
        def gradient(dz: tf.Tensor) -> list[tf.Tensor]:
            # Cast anew, late: the forward pass's float32 copies are gone by now.
            kept = again.after([dz], tensors[bool(remake) :])
            anew = [remake([dz]), *kept] if remake else kept
            wide = [
                tf.identity(t) if isinstance(operand, Fixed) else t  # for the tape
                for operand, t in zip(operands, cast(anew), strict=True)
            ]
            with tf.GradientTape() as tape:
                tape.watch(wide)
                # A bilinear function's gradients need not what it makes: pruned.
                z = product(*wide)
            grads = tape.gradient(z, wide, tf.cast(dz, dtype))
            return [tf.cast(g, t.dtype) for g, t in zip(grads, tensors, strict=True)]

        # A kernel is cast in its turn: nothing else keeps the first step of a graph
        # from casting those of all layers.
        with tf.control_dependencies(tensors):
            wide = cast(tensors)
        return tf.cast(product(*wide), narrow), gradient

    return compute(*(t.source if isinstance(t, Fixed) else t for t in operands))


def matrices(adjoint_x: bool, adjoint_y: bool) -> Product:
    """Makes `BatchMatMulV2` of two operands that may broadcast against each other."""

    def product(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        if y.shape.rank == 2 and not adjoint_x:  # one product, and one sum over rows
            rows = tf.reshape(
                x, (-1, y.shape[1 if adjoint_y else 0] or tf.shape(x)[-1])
            )
            z = tf.matmul(rows, y, transpose_b=adjoint_y)
            sizes = [*x.shape[:-1], z.shape[-1]]
            shape = shapes.constant(sizes)
            if shape is None:
                shape = tf.concat([tf.shape(x)[:-1], tf.shape(z)[-1:]], 0)
            return tf.ensure_shape(tf.reshape(z, shape), sizes)
        return broadcast(x, y)

    @differentiation.custom_gradient
    def broadcast(x: tf.Tensor, y: tf.Tensor) -> again.WithGradient:
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
