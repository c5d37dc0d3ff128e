"""Shapes of tensors, as numbers where they are known: a graph computes the others."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def sizes(tensor: tf.Tensor) -> list[int | tf.Tensor]:
    """Returns the sizes of a tensor of known rank, int32 [] where unknown."""
    known = tensor.shape.as_list()
    if None not in known:
        return known
    found = tf.unstack(tf.shape(tensor))
    return [f if k is None else k for f, k in zip(found, known, strict=True)]


def constant(sizes: Sequence[int | None]) -> list[int] | None:
    """Returns a shape for `tf.reshape`, or None where that needs more than `sizes`."""
    if list(sizes).count(None) > 1 or 0 in sizes:
        return None
    return [-1 if size is None else size for size in sizes]
