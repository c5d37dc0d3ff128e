"""Checksums of arrays."""

from __future__ import annotations

import zlib

import numpy as np


def crc32(values: np.ndarray | bytes, start: int = 0) -> str:
    """Returns the CRC-32 of an array's bytes, 8 hexadecimal digits.

    It finds changes, not forgeries, and is read at twice the speed of SHA-256.

    Args:
      values: of any shape and dtype of numbers.
      start: a number that goes before them.
    """
    if isinstance(values, np.ndarray):
        values = np.ascontiguousarray(values)
    return f"{zlib.crc32(values, start):08x}"
