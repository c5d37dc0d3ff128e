"""Augmentations of images: what is drawn for each example, and what it does.

draw, change = AUGMENTATIONS["flip_shift"]
drawn = draw(words)                  # NumPy arrays, one number for each example
images = change(images, *drawn)      # in a `tf.data` pipeline
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

MIN_CROP = 0.5  # of the image's area
# Pixels up to which images are moved together: a loop costs 15 us for each of them.
_SMALL = 64 * 64


def draw_flip_shift(words: np.ndarray, max_shift: int) -> tuple[np.ndarray, ...]:
    """Draws flip in {0, 1}, dy and dx in [-max_shift, max_shift]; int32 [n] each."""
    bits = words.view(np.uint64)
    span = np.uint64(2 * max_shift + 1)
    flip = bits & np.uint64(1)
    dy = (bits >> np.uint64(1) & np.uint64(2**31 - 1)) % span
    dx = (bits >> np.uint64(32)) % span
    return (
        flip.astype(np.int32),
        dy.astype(np.int32) - max_shift,
        dx.astype(np.int32) - max_shift,
    )


def draw_flip_crop(words: np.ndarray) -> tuple[np.ndarray, ...]:
    """Draws flip in {0, 1}, int32; area in [MIN_CROP, 1], y, x in [0, 1], float32."""
    bits = words.view(np.uint64)
    flip = bits & np.uint64(1)
    fields = [bits >> np.uint64(shift) & np.uint64(2**21 - 1) for shift in (1, 22, 43)]
    area, y, x = (field.astype(np.float32) / np.float32(2**21 - 1) for field in fields)
    return flip.astype(np.int32), MIN_CROP + (1 - MIN_CROP) * area, y, x


def flip_shift(
    images: tf.Tensor, flip: tf.Tensor, dy: tf.Tensor, dx: tf.Tensor, max_shift: int
) -> tf.Tensor:
    """Flips, then shifts down by `dy` and right by `dx`.

    Args:
      images: uint8 [b, h, w, c]; 0 is black.
      flip: int32 [b], 1 to mirror left and right.
      dy: int32 [b], in [-max_shift, max_shift].
      dx: int32 [b], likewise.
      max_shift: pixels.
    """
    border = [max_shift, max_shift]
    if math.prod(images.shape[1:3]) <= _SMALL:
        padded = tf.pad(images, [[0, 0], border, border, [0, 0]])
        return _gathered(padded, images.shape, flip, dy, dx, max_shift)

    def moved(one: tuple[tf.Tensor, ...]) -> tf.Tensor:
        image, flip, dy, dx = one
        image = tf.cond(flip == 1, lambda: tf.reverse(image, [1]), lambda: image)
        start = [max_shift - dy, max_shift - dx, 0]
        return tf.slice(tf.pad(image, [border, border, [0, 0]]), start, image.shape)

    like = tf.TensorSpec(images.shape[1:], images.dtype)
    return tf.map_fn(moved, (images, flip, dy, dx), fn_output_signature=like)


def _gathered(
    padded: tf.Tensor,
    shape: tf.TensorShape,
    flip: tf.Tensor,
    dy: tf.Tensor,
    dx: tf.Tensor,
    max_shift: int,
) -> tf.Tensor:
    """Does what `flip_shift` does, to images of this shape that have a border."""
    batch, height, width, channels = shape
    padded_height, padded_width = height + 2 * max_shift, width + 2 * max_shift
    rows = tf.range(height) + max_shift - dy[:, None]
    columns = tf.range(width) + max_shift - dx[:, None]
    columns = tf.where(flip[:, None] == 1, padded_width - 1 - columns, columns)
    first = tf.range(batch) * padded_height
    flat = (first[:, None] + rows)[:, :, None] * padded_width + columns[:, None, :]
    return tf.gather(tf.reshape(padded, (-1, channels)), flat)


def flip_crop(
    images: tf.Tensor,
    flip: tf.Tensor,
    area: tf.Tensor,
    y: tf.Tensor,
    x: tf.Tensor,
    size: tuple[int, int],
    method: str = "bilinear",
) -> tf.Tensor:
    """Crops a part of each image, flipped or not, and resizes it bilinearly.

    Args:
      images: uint8 [b, h, w, c].
      flip: int32 [b], 1 to mirror left and right.
      area: float32 [b], share of the image, in (0, 1].
      y: float32 [b], where the part is, from 0 (top) to 1 (bottom).
      x: float32 [b], likewise from 0 (left) to 1 (right).
      size: height and width of the returned images.
      method: of resizing, `bilinear` or `nearest`.

    Returns:
      uint8 [b, *size, c].
    """
    side = tf.sqrt(area)
    top, left = y * (1 - side), x * (1 - side)
    right = left + side
    left, right = tf.where(flip == 1, right, left), tf.where(flip == 1, left, right)
    boxes = tf.stack([top, left, top + side, right], axis=1)
    places = tf.range(images.shape[0])
    made = tf.image.crop_and_resize(images, boxes, places, size, method)
    return tf.cast(tf.round(made), tf.uint8)


def flip_shift_masks(
    labels: tf.Tensor, flip: tf.Tensor, dy: tf.Tensor, dx: tf.Tensor, max_shift: int
) -> tf.Tensor:
    """Does to masks, uint8 [b, h, w], what `flip_shift` does to images.

    What moves in is ignored.
    """
    # As an image, of which 0 moves in: numbers are one more here.
    moved = flip_shift((labels + 1)[..., tf.newaxis], flip, dy, dx, max_shift)
    return moved[..., 0] - 1


def flip_crop_masks(
    labels: tf.Tensor,
    flip: tf.Tensor,
    area: tf.Tensor,
    y: tf.Tensor,
    x: tf.Tensor,
    size: tuple[int, int],
) -> tf.Tensor:
    """Does to masks, uint8 [b, h, w], what `flip_crop` does to images.

    Each pixel is that of the nearest one; returns uint8 [b, *size].
    """
    made = flip_crop(labels[..., tf.newaxis], flip, area, y, x, size, "nearest")
    return made[..., 0]


# By name: what is drawn for each position of an epoch, what is done with it to images,
# and what to masks.
AUGMENTATIONS = {
    "flip_shift": (draw_flip_shift, flip_shift, flip_shift_masks),
    "flip_crop": (draw_flip_crop, flip_crop, flip_crop_masks),
}
