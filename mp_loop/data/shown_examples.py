"""Examples of a data set as people see them, small enough for a page.

    shown_examples.of(source, source.test, place)
    # {"image": "data:image/png;base64,..."}, {"text": "..."}, {"row": [[name, 0.5]]},
    # and "name" where it is a file

Pictures are shrunk, texts and rows are cut.
"""

from __future__ import annotations

import base64
import colorsys

import numpy as np
import tensorflow as tf

from mp_loop.config import json_values
from mp_loop.data import decoding, sources

MOST_PIXELS = 128  # the longer side of a picture
_EXACT_PIXELS = 64  # up to this the pixels are kept as they are
_MOST_CHARACTERS = 500
_MOST_COLUMNS = 30


def of(
    source: sources.Source, split: decoding.Split, place: int
) -> dict[str, json_values.Json]:
    """Returns one example, as JSON can hold it: its name, and what can be shown.

    Args:
      source: the data set.
      split: of it.
      place: of the example in the split.
    """
    name = {"name": split.names[place]} if split.names else {}
    return name | _shown(source, split.one(place))


def _shown(source: sources.Source, inputs: np.ndarray) -> dict[str, json_values.Json]:
    """Returns an image, a text or a row; nothing where it cannot be shown."""
    if source.kind == "image":
        uri = data_uri(inputs)
        return {"image": uri} if uri else {}
    if source.kind == "row":
        names = source.columns or map(str, range(len(inputs)))
        pairs = zip(names, inputs.tolist(), strict=True)
        return {"row": [list(pair) for pair in pairs][:_MOST_COLUMNS]}
    text = source.tokenize.text(inputs)
    if not text:
        return {}
    cut = text[: _MOST_CHARACTERS - 1] + "…"
    return {"text": text if len(text) <= _MOST_CHARACTERS else cut}


def masked(source: sources.Source, place: int, mask: np.ndarray) -> str:
    """Encodes a test image with the colours of a mask over it.

    Args:
      source: the data set.
      place: of the image in the test split.
      mask: class numbers, int [h, w], of the middle of the image; -1 has no colour.

    Returns:
      As `data_uri`.
    """
    image = source.middle(source.test.one(place)[np.newaxis])[0].astype(np.float32)
    below = image if image.shape[-1] == 3 else image.mean(axis=-1, keepdims=True)
    colors = np.array([_rgb(i) for i in range(source.num_classes)], np.float32)
    over = np.where(mask[..., np.newaxis] >= 0, (below + colors[mask]) / 2, below)
    return data_uri(np.round(over).astype(np.uint8))


def color_of(number: int) -> str:
    """Returns the colour of a class in masks, as a page writes it."""
    return "#" + "".join(f"{value:02x}" for value in _rgb(number))


def _rgb(number: int) -> list[int]:
    """Returns one of many colours, neighbours of which are far apart."""
    hue = number * 0.618034 % 1  # the golden ratio
    value = 0.95 if number % 2 else 0.7
    return [round(255 * x) for x in colorsys.hsv_to_rgb(hue, 0.85, value)]


def data_uri(pixels: np.ndarray) -> str:
    """Encodes an image for a page: as PNG, or a larger one as JPEG if that is smaller.

    Args:
      pixels: uint8 [h, w, channels]; a large image is shrunk to `MOST_PIXELS`.

    Returns:
      The address that holds it; "" of channels that no picture has.
    """
    channels = pixels.shape[-1]
    if not 1 <= channels <= 4:
        return ""
    with tf.device("CPU:0"):
        small = tf.constant(_shrunk(pixels))
        encoded = {"png": tf.io.encode_png(small)}
        if channels in (1, 3) and max(small.shape[:2]) > _EXACT_PIXELS:
            encoded["jpeg"] = tf.io.encode_jpeg(small, quality=90)
    contents = {kind: made.numpy() for kind, made in encoded.items()}
    kind = min(contents, key=lambda kind: len(contents[kind]))
    return f"data:image/{kind};base64,{base64.b64encode(contents[kind]).decode()}"


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    """Returns an image whose sides are at most `MOST_PIXELS`, in its proportions."""
    height, width, _ = pixels.shape
    longer = max(height, width)
    if longer <= MOST_PIXELS:
        return pixels
    size = [max(1, round(n * MOST_PIXELS / longer)) for n in (height, width)]
    # Of a huge image every few pixels are enough for the mean of areas.
    step = max(1, longer // (8 * MOST_PIXELS))
    some = pixels[::step, ::step]
    made = tf.image.resize(some, size, tf.image.ResizeMethod.AREA)
    return np.round(made.numpy()).astype(np.uint8)
