"""How a layer made a tensor, told to the layer after it, which may then keep less.

    origins.note(y, origins.Affine(x, factor, offset))
    origins.of(y, origins.Affine)        that, or None

Kept on the tensor, as Keras keeps its masks, since it must live exactly as long. A
table by tensor would hold the origin, with it the graph, and so the tensor, for good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import tensorflow as tf

_ATTRIBUTE = "_mp_loop_origin"


class Product(NamedTuple):
    """Of a cheap product: `multiply(inputs, kernel)` gives the tensor again."""

    multiply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    inputs: tf.Tensor
    kernel: tf.Tensor


class Affine(NamedTuple):
    """Of frozen batch norm: `inputs * factor + offset` in float32, rounded once.

    Attributes:
      inputs: 16 bits, [..., channels].
      factor: float32 [channels].
      offset: float32 [channels].
    """

    inputs: tf.Tensor
    factor: tf.Tensor
    offset: tf.Tensor


class Activation(NamedTuple):
    """Of an activation that keeps `inputs`: `activate(inputs)` gives it again."""

    activate: Callable[[tf.Tensor], tf.Tensor]
    inputs: tf.Tensor


_Origin = TypeVar("_Origin", Product, Affine, Activation)


def note(tensor: tf.Tensor, origin: Product | Affine | Activation) -> None:
    """Says how a tensor was made."""
    setattr(tensor, _ATTRIBUTE, origin)


def of(tensor: tf.Tensor, kind: type[_Origin]) -> _Origin | None:
    """Returns how a tensor was made, if that is known and of this kind."""
    origin = getattr(tensor, _ATTRIBUTE, None)
    return origin if isinstance(origin, kind) else None
