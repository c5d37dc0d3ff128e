"""What is computed again in the backward pass must not be merged with the first time.

    outputs = again.run(compute, tensors)    # keeps `tensors` for the backward pass

    with again.for_xla():                    # around what is traced for XLA
        ...
        x, y = again.after([dy], [x, y])     # the same numbers, but not before `dy`

Compilers find that the two computations are equal, and keep what was to be forgotten.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from mp_loop.distributed import nests
from mp_loop.operations import differentiation

# What a function under `tf.custom_gradient` returns: its outputs, and a function from
# their gradients to those of its arguments.
WithGradient: TypeAlias = tuple[nests.Nest, Callable[..., nests.Nest]]

# Makes a tensor a second time, but not before others are there, as `after` does.
Remake: TypeAlias = Callable[[Sequence[tf.Tensor]], tf.Tensor]

_for_xla = contextvars.ContextVar("for_xla", default=False)


@contextlib.contextmanager
def for_xla() -> Iterator[None]:
    """Inside, what is traced will be compiled by XLA."""
    token = _for_xla.set(True)
    try:
        yield
    finally:
        _for_xla.reset(token)


def after(these: Sequence[tf.Tensor], tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns tensors as they are, but not before others are there.

    Args:
      these: what must be there first, the gradients of a backward pass.
      tensors: of any dtype.
    """
    if _for_xla.get():  # which ignores control dependencies
        # Integers may be axes and shapes, which XLA must know when it compiles.
        held = [x for x in tensors if x.dtype.is_floating]
        found = iter(xla.optimization_barrier(*held, *these))
        return [next(found) if x.dtype.is_floating else x for x in tensors]
    with tf.control_dependencies(these):
        return [tf.identity(x) for x in tensors]


def run(
    compute: Callable[..., list[tf.Tensor]], tensors: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    """Computes something of tensors, which alone are kept for its gradients.

    Args:
      compute: of the tensors, to a list of floats; without effects, and nothing else
        that it uses has a gradient.
      tensors: of any dtype.
    """

    @differentiation.custom_gradient
    def once(*tensors: tf.Tensor) -> WithGradient:
        def gradient(*grads: tf.Tensor) -> list[tf.Tensor | None]:
            anew = after(grads, tensors)
            floats = [x for x in anew if x.dtype.is_floating]
            with tf.GradientTape() as tape:
                tape.watch(floats)
                outputs = compute(*anew)
            found = iter(tape.gradient(outputs, floats, grads))
            return [next(found) if x.dtype.is_floating else None for x in anew]

        return tuple(compute(*tensors)), gradient

    return tf.nest.flatten(once(*tensors))
