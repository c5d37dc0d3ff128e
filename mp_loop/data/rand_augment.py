"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719): two random changes of each image.

    first, second = draw(count, seed, epoch)         # int32 [count] each
    images = change(images, first, second, magnitude=9)

The changes and their strengths are those of torchvision's `RandAugment`, the arithmetic
is that of Pillow, whole numbers from 0 to 255.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from mp_loop.config import choices
from mp_loop.data import order

_GRAY = (19595, 38470, 7471)  # of 65536: ITU-R 601-2 luma
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
# Images [n, h, w, c], signs [n] of -1 and 1, and the share of the greatest strength.
_Change = Callable[[tf.Tensor, tf.Tensor, float], tf.Tensor]


def draw(count: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws two of `CHANGES` for each position of an epoch, each with a sign.

    Args:
      count: positions of the epoch.
      seed: as of `order.generator`.
      epoch: likewise.

    Returns:
      Twice `2 * number + sign`, int32 [count].
    """
    generator = order.generator(seed, epoch, purpose=1)
    first, second = generator.integers(
        2 * len(CHANGES), size=(2, count), dtype=np.int32
    )
    return first, second


def change(
    images: tf.Tensor, first: tf.Tensor, second: tf.Tensor, magnitude: int
) -> tf.Tensor:
    """Makes the two changes, one after the other.

    Args:
      images: uint8 [b, h, w, c], or float32, which is rounded; what moves in is black.
      first: int32 [b], as drawn.
      second: int32 [b], likewise.
      magnitude: strength of the changes, from 0 to `choices.MAX_MAGNITUDE`.

    Returns:
      uint8 [b, h, w, c].
    """
    if images.dtype.is_floating:
        images = tf.cast(tf.round(images), tf.uint8)
    for drawn in (first, second):
        images = _one(images, drawn, magnitude / choices.MAX_MAGNITUDE)
    return images


@functools.partial(tf.function, autograph=False)  # traced once, not in every epoch
def _one(images: tf.Tensor, drawn: tf.Tensor, strength: float) -> tf.Tensor:
    """Makes one change of each image; each change is computed for its images alone."""
    shape = images.shape
    number, sign = drawn // 2, tf.cast(drawn % 2 * 2 - 1, tf.float32)
    columns = (images, sign, tf.range(tf.size(drawn)))
    parts = [tf.dynamic_partition(x, number, len(CHANGES)) for x in columns]
    changed = [
        tf.cast(made(tf.cast(some, tf.float32), signs, strength), tf.uint8)
        for made, some, signs in zip(CHANGES.values(), *parts[:2], strict=True)
    ]
    return tf.ensure_shape(tf.dynamic_stitch(parts[2], changed), shape)


def _identity(images: tf.Tensor, signs: tf.Tensor, strength: float) -> tf.Tensor:
    del signs, strength
    return images


def _moved(images: tf.Tensor, rows: list[tf.Tensor | float]) -> tf.Tensor:
    """Takes each pixel (x, y) from (a x + b y + c, d x + e y + f), bilinearly."""
    count = tf.shape(images)[0]
    zeros = tf.zeros(count)
    matrix = tf.stack([zeros + value for value in (*rows, 0.0, 0.0)], axis=1)
    return tf.round(
        tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=matrix,
            output_shape=tf.shape(images)[1:3],
            fill_value=0.0,
            interpolation="BILINEAR",
            fill_mode="CONSTANT",
        )
    )


def _shear_x(images: tf.Tensor, signs: tf.Tensor, strength: float) -> tf.Tensor:
    return _moved(images, [1.0, 0.3 * strength * signs, 0.0, 0.0, 1.0, 0.0])


def _shear_y(images: tf.Tensor, signs: tf.Tensor, strength: float) -> tf.Tensor:
    return _moved(images, [1.0, 0.0, 0.0, 0.3 * strength * signs, 1.0, 0.0])


def _translate_x(images: tf.Tensor, signs: tf.Tensor, strength: float) -> tf.Tensor:
    pixels = int(150 / 331 * images.shape[2] * strength)
    return _moved(images, [1.0, 0.0, pixels * signs, 0.0, 1.0, 0.0])


def _translate_y(images: tf.Tensor, signs: tf.Tensor, strength: float) -> tf.Tensor:
    pixels = int(150 / 331 * images.shape[1] * strength)
    return _moved(images, [1.0, 0.0, 0.0, 0.0, 1.0, pixels * signs])


def _rotate(images: tf.Tensor, signs: tf.Tensor, strength: float) -> tf.Tensor:
    """Turns around the middle, by up to 30 degrees."""
    cos, sin = math.cos(math.pi / 6 * strength), math.sin(math.pi / 6 * strength)
    x, y = (images.shape[2] - 1) / 2, (images.shape[1] - 1) / 2
    return _moved(
        images,
        [
            *(cos, sin * signs, x - cos * x - sin * signs * y),
            *(-sin * signs, cos, y + sin * signs * x - cos * y),
        ],
    )


def _brightness(images: tf.Tensor, signs: tf.Tensor, strength: float) -> tf.Tensor:
    return _blend(tf.zeros_like(images), images, signs, strength)


def _color(images: tf.Tensor, signs: tf.Tensor, strength: float) -> tf.Tensor:
    return _blend(_gray(images), images, signs, strength)


def _contrast(images: tf.Tensor, signs: tf.Tensor, strength: float) -> tf.Tensor:
    gray = tf.reduce_mean(_gray(images), (1, 2), keepdims=True)
    return _blend(tf.floor(gray + 0.5), images, signs, strength)


def _sharpness(images: tf.Tensor, signs: tf.Tensor, strength: float) -> tf.Tensor:
    channels = images.shape[-1]
    kernel = np.tile(_SMOOTH[:, :, None, None], (1, 1, channels, 1))
    smooth = tf.nn.depthwise_conv2d(
        images, kernel.astype(np.float32), [1, 1, 1, 1], "SAME"
    )
    inside = np.zeros((1, *images.shape[1:3], 1), bool)
    inside[:, 1:-1, 1:-1] = True
    smooth = tf.where(inside, tf.floor(smooth + 0.5), images)
    return _blend(smooth, images, signs, strength)


def _blend(
    other: tf.Tensor, images: tf.Tensor, signs: tf.Tensor, strength: float
) -> tf.Tensor:
    """Moves images towards, or away from, what has less of a property."""
    factor = 1 + 0.9 * strength * signs[:, None, None, None]
    return tf.floor(tf.clip_by_value(other + factor * (images - other), 0, 255))


def _gray(images: tf.Tensor) -> tf.Tensor:
    """The gray of each pixel, [n, h, w, 1]."""
    if images.shape[-1] != 3:
        return tf.floor(tf.reduce_mean(images, -1, keepdims=True))
    gray = tf.reduce_sum(images * np.array(_GRAY, np.float32), -1, keepdims=True)
    return tf.floor((gray + 2**15) / 2**16)


def _posterize(images: tf.Tensor, signs: tf.Tensor, strength: float) -> tf.Tensor:
    """Keeps 8 to 4 bits."""
    del signs
    step = 2.0 ** round(4 * strength)
    return tf.floor(images / step) * step


def _solarize(images: tf.Tensor, signs: tf.Tensor, strength: float) -> tf.Tensor:
    """Inverts what is bright."""
    del signs
    return tf.where(images >= 255 * (1 - strength), 255 - images, images)


def _auto_contrast(images: tf.Tensor, signs: tf.Tensor, strength: float) -> tf.Tensor:
    """Stretches each channel to 0 ... 255."""
    del signs, strength
    least, most = (
        reduce(images, (1, 2), keepdims=True)
        for reduce in (tf.reduce_min, tf.reduce_max)
    )
    stretched = tf.floor((images - least) * 255 / tf.maximum(most - least, 1))
    return tf.where(most > least, stretched, images)


def _equalize(images: tf.Tensor, signs: tf.Tensor, strength: float) -> tf.Tensor:
    """Makes the values of each channel about equally frequent."""
    del signs, strength
    height, width, channels = images.shape[1:]
    values = tf.cast(tf.transpose(images, (0, 3, 1, 2)), tf.int32)
    values = tf.reshape(values, (-1, height * width))
    counts = tf.math.bincount(values, minlength=256, maxlength=256, axis=-1)
    brightest = tf.reduce_max(values, -1, keepdims=True)
    of_brightest = tf.gather(counts, brightest, batch_dims=1)
    step = (height * width - of_brightest) // 255
    below = tf.cumsum(counts, axis=-1, exclusive=True)
    table = tf.minimum((step // 2 + below) // tf.maximum(step, 1), 255)
    equal = tf.where(step > 0, tf.gather(table, values, batch_dims=1), values)
    equal = tf.reshape(equal, (-1, channels, height, width))
    return tf.cast(tf.transpose(equal, (0, 2, 3, 1)), tf.float32)


CHANGES: dict[str, _Change] = {
    "identity": _identity,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
}
