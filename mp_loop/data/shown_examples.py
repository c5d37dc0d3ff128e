"""Examples of a data set as people see them, small enough for a page.

shown_examples.of(source, source.test, place)
# {"image": "data:image/png;base64,..."}, {"text": "..."}, or {"row": [[name, 0.5]]}
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import tensorflow as tf

from mp_loop.data import decoding, sources

MOST_PIXELS = 128  # the longer side of a picture
_EXACT_PIXELS = 64  # up to this the pixels are kept as they are
_MOST_CHARACTERS = 500
_MOST_COLUMNS = 30


def of(source: sources.Source, split: decoding.Split, place: int) -> dict[str, Any]:
    """Returns one example, as JSON can hold it; nothing where it cannot be shown.

    Args:
      source: the data set.
      split: of it.
      place: of the example in the split.
    """
    away = split.not_held
    inputs = split.inputs[place] if away is None else away.row(place).numpy()
    if source.kind == "image":
        uri = data_uri(inputs)
        return {"image": uri} if uri else {}
    if source.kind == "row":
        names = source.columns or map(str, range(len(inputs)))
        pairs = zip(names, inputs.tolist(), strict=True)
        return {"row": [list(pair) for pair in pairs][:_MOST_COLUMNS]}
    text = source.tokenize.text(inputs)
    cut = text[: _MOST_CHARACTERS - 1] + "…"
    return {"text": text if len(text) <= _MOST_CHARACTERS else cut}


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
