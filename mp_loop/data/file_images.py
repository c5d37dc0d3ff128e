"""Images that stay in their files and are decoded when they are wanted.

    images = FileImages("photos", ("cat/1.jpg", ...), (1000, 160, 160, 3), side=160)
    images.row(index)           # uint8 [160, 160, 3], in a `tf.data` pipeline

They are what the arrays of `decoding.Split` are, bit for bit, in no memory.
"""

from __future__ import annotations

import dataclasses
import functools
import os

import numpy as np
import tensorflow as tf

from mp_loop.data import decoding, image_files


@dataclasses.dataclass(frozen=True, eq=False)
class FileImages:
    """Images in files.

    Attributes:
      folder: of all files.
      files: their paths, relative to the folder.
      shape: (n, h, w, 3) of what they become.
      side: of the squares that they are resized to; 0: as they are.
      pixel_counts: see `decoding.pixel_counts`; of the files that were there at first.
      checksum: of the array that these would be.
    """

    folder: str
    files: tuple[str, ...]
    shape: tuple[int, ...]
    side: int
    pixel_counts: np.ndarray
    checksum: str

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, kept: np.ndarray) -> FileImages:
        """Returns those of a mask, bool [n]."""
        files = tuple(np.array(self.files, object)[kept])
        shape = (len(files), *self.shape[1:])
        return dataclasses.replace(self, files=files, shape=shape)

    def row(self, index: tf.Tensor) -> tf.Tensor:
        """Decodes an image, uint8 [h, w, 3].

        Args:
          index: integer [].

        Raises:
          tf.errors.OpError: when it runs: a file is gone, or is no image any more.
        """
        decode = image_files.reader(self.shape[-1], self.side)
        pixels = decode(tf.io.read_file(tf.gather(self._paths, index)))
        return tf.ensure_shape(pixels, self.shape[1:])

    def rows(self, indices: tf.data.Dataset) -> tf.data.Dataset:
        """Decodes images, one by one; see `row`."""
        return indices.map(self.row, **decoding.PARALLEL)

    @functools.cached_property
    def _paths(self) -> tf.Tensor:
        paths = [os.fsencode(os.path.join(self.folder, name)) for name in self.files]
        return decoding.in_host_memory(np.array(paths, object))
