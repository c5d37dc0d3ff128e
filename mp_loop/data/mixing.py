"""MixUp (Zhang et al. 2017, arXiv 1710.09412) and CutMix (Yun et al. 2019, 1905.04899).

    drawn = draw(count, seed, epoch, mixup=0.2, cutmix=1.0)
    images, labels = mix(images, labels, *drawn, classes=10)

The examples at positions 2 k and 2 k + 1 of an epoch are mixed with each other, each in
its own way: what is mixed does not depend on how a batch is cut for devices, and no
example is read twice.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from mp_loop.data import order


def draw(
    count: int, seed: int, epoch: int, mixup: float, cutmix: float
) -> tuple[np.ndarray, ...]:
    """Draws how the example at each position is mixed.

    Args:
      count: positions of the epoch.
      seed: as of `order.generator`.
      epoch: likewise.
      mixup: alpha of the Beta distribution that the share is drawn from; 0: no MixUp.
      cutmix: likewise; where both are above 0, each is used for half of the examples.

    Returns:
      Whether it is CutMix, bool [count]; and float32 [count] in [0, 1]: the share of
      the example itself, and y and x, where the middle of CutMix's hole is.
    """
    generator = order.generator(seed, epoch, purpose=2)
    cut = generator.random(count) < (0.5 if mixup and cutmix else float(cutmix > 0))
    alpha = np.where(cut, cutmix, mixup)
    share = generator.beta(alpha, alpha)
    y, x = generator.random((2, count))
    return cut, *(drawn.astype(np.float32) for drawn in (share, y, x))


def mix(
    images: tf.Tensor,
    labels: tf.Tensor,
    cut: tf.Tensor,
    share: tf.Tensor,
    y: tf.Tensor,
    x: tf.Tensor,
    classes: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes each example with its neighbour.

    Args:
      images: uint8 or float32 [b, h, w, c], b being even.
      labels: int64 [b], class numbers.
      cut: bool [b], see `draw`; so are the others.
      share: float32 [b].
      y: float32 [b].
      x: float32 [b].
      classes: how many there are.

    Returns:
      Images as given, uint8 rounded; and the share of each class, float32 [b, classes].
    """
    height, width = images.shape[1:3]
    hole = _hole(share, y, height), _hole(share, x, width)
    inside = hole[0][:, :, tf.newaxis] & hole[1][:, tf.newaxis, :]
    kept = 1 - tf.reduce_mean(tf.cast(inside, tf.float32), (1, 2))
    weights = tf.where(
        cut[:, tf.newaxis, tf.newaxis],
        tf.where(inside, 0.0, 1.0),
        share[:, tf.newaxis, tf.newaxis],
    )
    mixed = _mixed(tf.cast(images, tf.float32), weights[..., tf.newaxis])
    if images.dtype.is_integer:
        mixed = tf.round(mixed)
    share = tf.where(cut, kept, share)
    labels = _mixed(tf.one_hot(labels, classes), share[:, tf.newaxis])
    return tf.cast(mixed, images.dtype), labels


def _hole(share: tf.Tensor, middle: tf.Tensor, side: int) -> tf.Tensor:
    """Which rows, or columns, a hole of `1 - share` of the area covers; bool [b, side].

    A hole that reaches beyond the border is smaller.
    """
    length = tf.round(tf.sqrt(1 - share) * side)[:, tf.newaxis]
    first = tf.round(middle[:, tf.newaxis] * side - length / 2)
    place = tf.range(side, dtype=tf.float32)
    return (place >= first) & (place < first + length)


def _mixed(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Returns `weights * values + (1 - weights) * those of the neighbours`."""
    neighbour = tf.bitwise.bitwise_xor(tf.range(tf.shape(values)[0]), 1)
    other = tf.gather(values, neighbour)
    mixed = weights * values + (1 - weights) * other
    return tf.ensure_shape(mixed, values.shape)
