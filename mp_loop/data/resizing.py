"""Sizes of images: squares of their middle, resized.

side = resizing.whole_side(data)            # of what is held
images = resizing.resized(images, side)
resizing.middle(images, (160, 160))         # what a model sees
"""

from __future__ import annotations

from typing import TypeVar

import keras
import numpy as np
import tensorflow as tf

from mp_loop.config import sections

Images = TypeVar("Images", np.ndarray, tf.Tensor, keras.KerasTensor)


def whole_side(data: sections.Data) -> int:
    """The side of the squares that images are resized to, before a crop; 0: none."""
    return round(data.image_size / data.crop_pct)


def middle(images: Images, size: tuple[int, int]) -> Images:
    """Cuts out the middle of images or masks, [b, h, w, ...], of a height and width."""
    height, width = size
    top = (images.shape[1] - height) // 2
    left = (images.shape[2] - width) // 2
    return images[:, top : top + height, left : left + width]


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resizes the largest squares in the middle; uint8 [b, size, size, c]."""
    return squares(pixels, size).numpy()


@tf.function(
    input_signature=[
        tf.TensorSpec([None, None, None, None], tf.uint8),
        tf.TensorSpec([], tf.int32),
    ],
    autograph=False,
)
def squares(pixels: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Does what `resized` does, as one operation: Python's threads need one lock."""
    with tf.device("CPU:0"):
        sides = tf.shape(pixels)[1:3]
        side = tf.reduce_min(sides)
        top, left = tf.unstack((sides - side) // 2)
        square = pixels[:, top : top + side, left : left + side]

        def resize() -> tf.Tensor:
            made = tf.image.resize(square, tf.stack([size, size]), antialias=True)
            return tf.cast(tf.round(tf.clip_by_value(made, 0, 255)), tf.uint8)

        return tf.cond(side == size, lambda: square, resize)
