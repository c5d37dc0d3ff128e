"""Masks that stay in their files and are decoded when they are wanted.

    made = FileMasks("scans", ("masks/1.png", ...), (1000, 96, 96), side=96, ...)
    made.row(index)             # uint8 [96, 96], in a `tf.data` pipeline

They are what the arrays of `masks` are, bit for bit, in no memory.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import tensorflow as tf

from mp_loop.config import errors
from mp_loop.data import checksums, decoding, image_files, mask_files, masks, resizing

_SAME = np.arange(256, dtype=np.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class FileMasks:
    """Masks in files: a `masks.NotHeld`.

    Attributes:
      folder: of all files.
      files: their paths, relative to the folder.
      shape: (n, h, w) of what they become.
      side: of the squares that they are resized to; 0: as they are.
      counts: int64 [256], how many pixels have each number.
      middle_counts: likewise, of those that count in an evaluation.
      checksum: of the array that these would be.
      numbers: uint8 [256], what becomes of each number of a file.
    """

    folder: str
    files: tuple[str, ...]
    shape: tuple[int, ...]
    side: int
    counts: np.ndarray
    middle_counts: np.ndarray
    checksum: str
    numbers: np.ndarray = dataclasses.field(default_factory=lambda: _SAME)

    def __len__(self) -> int:
        return len(self.files)

    def renumbered(self, numbers: np.ndarray) -> FileMasks:
        """Returns the same with other numbers; see `masks.renumbered`."""
        made = dataclasses.replace(
            self,
            numbers=numbers[self.numbers],
            counts=_moved(self.counts, numbers),
            middle_counts=_moved(self.middle_counts, numbers),
        )
        used = np.flatnonzero(self.counts)
        if np.array_equal(numbers[used], used):
            return made
        checksum = checksums.crc32(b"")
        for mask in image_files.in_parallel(made.read, range(len(self))):
            checksum = checksums.crc32(mask, int(checksum, 16))
        return dataclasses.replace(made, checksum=checksum)

    def read(self, index: int) -> np.ndarray:
        """Decodes a mask, uint8 [h, w].

        Raises:
          DataError: it is gone, or is no mask any more.
        """
        name = self.files[index]
        try:
            mask = mask_files.decoded(os.path.join(self.folder, name))
        except errors.DataError as error:
            raise errors.DataError(f"{name}: {error}") from error
        if self.side:
            mask = masks.resized(mask[np.newaxis], self.side)[0]
        return self.numbers[mask]

    @tf.autograph.experimental.do_not_convert
    def row(self, index: tf.Tensor) -> tf.Tensor:
        """Decodes a mask in a graph; see `read`."""
        mask = tf.numpy_function(self.read, [index], tf.uint8)
        return tf.ensure_shape(mask, self.shape[1:])

    def rows(self, indices: tf.data.Dataset) -> tf.data.Dataset:
        """Decodes masks, one by one; see `read`."""
        return indices.map(self.row, **decoding.PARALLEL)


class Counted:
    """Counts the pixels of masks and leaves the masks where they are."""

    def __init__(self, middle: int):
        """Nothing is counted yet.

        Args:
          middle: the side of the squares that count in an evaluation; 0: all does.
        """
        self._middle = middle
        self._counts = np.zeros(256, np.int64)
        self._middle_counts = np.zeros(256, np.int64)
        self._checksum = checksums.crc32(b"")

    def add(self, mask: np.ndarray) -> None:
        """Takes uint8 [h, w]."""
        self._counts += np.bincount(mask.ravel(), minlength=256)
        size = (self._middle, self._middle) if self._middle else mask.shape
        part = resizing.middle(mask[np.newaxis], size)
        self._middle_counts += np.bincount(part.ravel(), minlength=256)
        self._checksum = checksums.crc32(mask, int(self._checksum, 16))

    def of(
        self, folder: str, files: tuple[str, ...], shape: tuple[int, ...], side: int
    ) -> FileMasks:
        """Returns the masks that were counted; see `FileMasks`."""
        counts = self._counts, self._middle_counts, self._checksum
        return FileMasks(folder, files, (len(files), *shape), side, *counts)


def _moved(counts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Counts pixels whose numbers have become others."""
    return np.bincount(numbers, counts, minlength=256).astype(np.int64)
