"""Masks in PNG files: the number of each pixel as it is stored.

    mask = mask_files.decoded("masks/1.png")     # uint8 [h, w]
    content = mask_files.encoded(mask)           # of such a file

TensorFlow makes colors of a PNG with a table of colors, and spreads grays of fewer than
8 bits over 0 to 255. Masks are numbers: they are read as gray, and scaled back.
"""

from __future__ import annotations

import pathlib
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from mp_loop.config import errors

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _TABLE = 0, 3  # types of colors


def decoded(path: str) -> np.ndarray:
    """Decodes a mask, uint8 [h, w].

    Args:
      path: of a PNG, gray or with a table of colors, whose numbers are then read.

    Raises:
      DataError: it cannot be read, or is no such file; the message is the reason,
        without the path.
    """
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise errors.DataError(f"{error.strerror}.") from error
    if not content.startswith(_SIGNATURE) or len(content) < 33:
        raise errors.DataError("A mask must be a PNG: JPEG changes the numbers.")
    bits, colors = content[24], content[25]
    if colors not in (_GRAY, _TABLE) or bits > 8:
        raise errors.DataError(
            "A mask must be a PNG of 8 bits at most, gray or with a table of colors: "
            "the number of a pixel is that of its class."
        )
    try:
        pixels = tf.io.decode_png(_as_gray(content), channels=1).numpy()[..., 0]
    except (tf.errors.OpError, struct.error) as error:
        raise errors.DataError("The PNG is damaged.") from error
    return pixels // (255 // (2**bits - 1))  # exact: TensorFlow multiplied by this


def encoded(mask: np.ndarray) -> bytes:
    """Returns the contents of a gray PNG of uint8 [h, w]."""
    return tf.io.encode_png(mask[..., np.newaxis]).numpy()


def _as_gray(content: bytes) -> bytes:
    """Declares the numbers of a PNG to be grays, and drops what says otherwise."""
    kept = [_SIGNATURE]
    for name, body in _chunks(content):
        if name == b"IHDR":
            body = body[:9] + bytes([_GRAY]) + body[10:]
        if name in (b"IHDR", b"IDAT", b"IEND"):
            check = struct.pack(">I", zlib.crc32(name + body))
            kept.append(struct.pack(">I", len(body)) + name + body + check)
    return b"".join(kept)


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields name and contents of the parts of a PNG."""
    start = len(_SIGNATURE)
    while start + 8 <= len(content):
        size, name = struct.unpack(">I4s", content[start : start + 8])
        body = content[start + 8 : start + 8 + size]
        check = content[start + 8 + size : start + 12 + size]
        if check != struct.pack(">I", zlib.crc32(name + body)):
            raise struct.error("the sum does not match")
        yield name, body
        start += 12 + size
