"""A function of rows, computed for some rows at a time, forward and backward.

    y = blocks.run(attend, [queries, keys, values], [1, None, None], cut, tf.bfloat16)

What the function makes on its way exists for one block of rows alone, and is made again
in the backward pass, as `again.run` does.

Source: Rabe and Staats 2021 (arXiv 2112.05682), section 3; Dao et al. 2022
(arXiv 2205.14135). Both also cut keys, with a softmax that is corrected from block to
block; whole rows need no correction, and memory grows with their number alone, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import tensorflow as tf

from mp_loop.operations import again, differentiation, shapes

Compute = Callable[..., tf.Tensor]
_T = TypeVar("_T")

# What the blocks of a loop have made so far.
_Sum: TypeAlias = tf.TensorArray | tf.Tensor


@dataclasses.dataclass(frozen=True)
class Cut:
    """How an axis is cut.

    Attributes:
      axis: of what is computed.
      size: of that axis.
      block: rows of a block; the last block may be smaller.
    """

    axis: int
    size: int
    block: int

    @property
    def whole(self) -> int:
        """How many blocks are of full size."""
        return self.size // self.block

    @property
    def rest(self) -> int:
        """How many rows are left after these."""
        return self.size % self.block


def cut(axis: int, size: int, made: int, taken: int) -> Cut | None:
    """Cuts an axis of what makes at least twice as many numbers as it takes.

    Args:
      axis: of what is computed.
      size: of that axis.
      made: as for `rows`.
      taken: as for `rows`.
    """
    return Cut(axis, size, rows(size, made, taken)) if made >= 2 * taken else None


def rows(size: int, made: int, taken: int) -> int:
    """Returns how many rows make no more numbers than is kept for all of them.

    Fewer, where blocks are then of one size: what is computed for a last, smaller one
    would be traced and compiled besides.

    Args:
      size: of all rows.
      made: how many numbers are made of all of them.
      taken: how many numbers they are made of.
    """
    blocks = math.ceil(made / taken)
    most = math.ceil(size / blocks)
    even = (count for count in range(most, most // 2, -1) if size % count == 0)
    return next(even, most)


def run(
    compute: Compute,
    tensors: Sequence[tf.Tensor],
    axes: Sequence[int | None],
    cut: Cut,
    dtype: tf.DType,
    watched: Sequence[bool] | None = None,
    prepare: Callable[..., Sequence[tf.Tensor]] = lambda *tensors: tensors,
) -> tf.Tensor:
    """Computes a function of rows, block by block.

    Args:
      compute: of the tensors, to a tensor; without effects, and nothing else that it
        uses has a gradient.
      tensors: of any dtype; they alone are kept for the backward pass.
      axes: for each that `compute` takes, which axis has the rows; None: each block
        takes all of it.
      cut: of what is computed.
      dtype: of what is computed.
      watched: for each of these, whether it has a gradient; default: floats have.
      prepare: makes what `compute` takes of the tensors, for all rows, and again in the
        backward pass.

    Returns:
      What the blocks make, one after the other along the axis.
    """
    loop = _Loop(compute, axes, cut, dtype, watched)

    @differentiation.custom_gradient
    def once(*tensors: tf.Tensor) -> again.WithGradient:
        made = loop.forward(prepare(*tensors))

        def gradient(grad: tf.Tensor) -> list[tf.Tensor | None]:
            grad = tf.ensure_shape(grad, made.shape)
            anew = again.after([grad], tensors)
            floats = [x for x in anew if x.dtype.is_floating]
            with tf.GradientTape() as tape:
                tape.watch(floats)
                taken = prepare(*anew)
            grads = loop.backward(taken, grad)
            found = iter(tape.gradient(loop.watched(taken, taken), floats, grads))
            return [next(found) if x.dtype.is_floating else None for x in anew]

        return made, gradient

    return once(*tensors)


class _Loop:
    """The blocks of a function, in a loop; see `run`."""

    def __init__(
        self,
        compute: Compute,
        axes: Sequence[int | None],
        cut: Cut,
        dtype: tf.DType,
        watched: Sequence[bool] | None,
    ):
        self._compute, self._axes, self._cut = compute, axes, cut
        self._dtype, self._watched = dtype, watched or [True] * len(axes)

    def watched(self, values: Sequence[_T], tensors: Sequence[tf.Tensor]) -> list[_T]:
        """Those of some values, one for each tensor, whose tensors have a gradient."""
        return [
            value
            for value, x, watched in zip(values, tensors, self._watched, strict=True)
            if watched and x.dtype.is_floating
        ]

    def forward(self, tensors: Sequence[tf.Tensor]) -> tf.Tensor:
        cut = self._cut

        def turn(
            i: tf.Tensor, made: tf.TensorArray
        ) -> tuple[tf.Tensor, tf.TensorArray]:
            return i + 1, made.write(
                i, self._compute(*self._block(tensors, self._axes, i))
            )

        arrays = tf.TensorArray(self._dtype, cut.whole)
        _, made = _turns(turn, cut.whole, arrays)
        parts = [_side_by_side(made.stack(), cut.axis)]
        if cut.rest:
            parts.append(self._compute(*self._rest(tensors, self._axes)))
        return tf.concat(parts, cut.axis)

    def backward(
        self, tensors: Sequence[tf.Tensor], grad: tf.Tensor
    ) -> list[tf.Tensor]:
        cut = self._cut
        floats = self.watched(tensors, tensors)
        axes = self.watched(self._axes, tensors)
        given, given_axes = [*tensors, grad], [*self._axes, cut.axis]
        ends: Sequence[tf.Tensor | None] = [None] * len(floats)
        if cut.rest:
            ends = self._gradients(*self._rest(given, given_axes))

        def started(x: tf.Tensor, axis: int | None, end: tf.Tensor | None) -> _Sum:
            if axis is not None:
                return tf.TensorArray(x.dtype, cut.whole)
            # Of what every block takes, the gradient is a sum: in float32.
            shape = tf.shape(x)
            return tf.zeros(shape) if end is None else tf.cast(end, tf.float32)

        def turn(i: tf.Tensor, *so_far: _Sum) -> tuple[_Sum, ...]:
            found = self._gradients(*self._block(given, given_axes, i))
            added = (
                array.write(i, g)
                if axis is not None
                else array + tf.cast(g, tf.float32)
                for array, g, axis in zip(so_far, found, axes, strict=True)
            )
            return i + 1, *added

        def ended(
            summed: _Sum, x: tf.Tensor, axis: int | None, end: tf.Tensor | None
        ) -> tf.Tensor:
            if axis is None:
                return tf.cast(summed, x.dtype)  # float32 -> 16 bits
            made = _side_by_side(summed.stack(), axis)
            return made if end is None else tf.concat([made, end], axis)

        _, *summed = _turns(turn, cut.whole, *map(started, floats, axes, ends))
        return list(map(ended, summed, floats, axes, ends))

    def _gradients(self, *given: tf.Tensor) -> list[tf.Tensor]:
        """The gradients of what is watched, of the tensors and that of the result."""
        *tensors, grad = given
        floats = self.watched(tensors, tensors)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(floats)
            made = self._compute(*tensors)
        return tape.gradient(made, floats, grad, tf.UnconnectedGradients.ZERO)

    def _block(
        self, tensors: Sequence[tf.Tensor], axes: Sequence[int | None], i: tf.Tensor
    ) -> list[tf.Tensor]:
        return _rows_of(tensors, axes, i * self._cut.block, self._cut.block)

    def _rest(
        self, tensors: Sequence[tf.Tensor], axes: Sequence[int | None]
    ) -> list[tf.Tensor]:
        rest = self._cut.rest
        return _rows_of(tensors, axes, self._cut.size - rest, rest)


def _turns(
    turn: Callable[..., tuple[_Sum, ...]], count: int, *started: _Sum
) -> Sequence[_Sum]:
    """Takes turns one after the other: side by side, they would need the memory."""
    return tf.while_loop(
        lambda i, *_: i < count,
        turn,
        (tf.constant(0), *started),
        parallel_iterations=1,
        maximum_iterations=count,
    )


def _rows_of(
    tensors: Sequence[tf.Tensor],
    axes: Sequence[int | None],
    start: tf.Tensor | int,
    size: int,
) -> list[tf.Tensor]:
    """Cuts the same rows out of all tensors that have them."""
    found, zero = [], tf.constant(0)
    for x, axis in zip(tensors, axes, strict=True):
        if axis is None:
            found.append(x)
            continue
        begin = [start if i == axis else zero for i in range(x.shape.rank)]
        known, sizes = x.shape.as_list(), shapes.sizes(x)
        known[axis] = sizes[axis] = size
        made = tf.slice(x, begin, sizes)
        made.set_shape(known)
        found.append(made)
    return found


def _side_by_side(stacked: tf.Tensor, axis: int) -> tf.Tensor:
    """Puts blocks, [count, ...], one after the other along an axis of theirs."""
    order = [*range(1, axis + 1), 0, *range(axis + 1, stacked.shape.rank)]
    moved = tf.transpose(stacked, order)
    sizes = shapes.sizes(moved)
    sizes[axis : axis + 2] = [sizes[axis] * sizes[axis + 1]]
    return tf.reshape(moved, sizes)
