"""Decodes encoded images: into memory, or, where they are too many, to count them.

    images, kept = image_stores.decode(data, encoded, count, others=0, bad=bad)

`encoded` knows where the images are: in files (`Files`) or in records
(`array_records`). What is not held is decoded again whenever it is needed.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mp_loop.config import errors, sections
from mp_loop.data import checksums, decoding, file_images, image_files

logger = logging.getLogger(__name__)


class Encoded(Protocol):
    """The encoded images of a split."""

    def place(self, index: int) -> str:
        """What an image is called in messages."""

    def decoded(self, index: int) -> np.ndarray:
        """Decodes an image, uint8 [h, w, c]; may be called by several threads.

        Raises:
          DataError: it cannot be decoded; the message is the reason, without the place.
        """

    def not_held(self, kept: Sequence[int], counted: Counted) -> decoding.NotHeld:
        """Returns images that are decoded when they are wanted.

        Args:
          kept: their indices.
          counted: what was seen of them.
        """


@dataclasses.dataclass(frozen=True)
class Files:
    """Images in files: an `Encoded`.

    Attributes:
      folder: of all files.
      files: their paths, relative to the folder, or absolute.
      side: of the squares that images are resized to; 0: as they are.
      places: where each file was named, for messages; else none.
    """

    folder: str
    files: tuple[str, ...]
    side: int
    places: tuple[str, ...] = ()

    def place(self, index: int) -> str:
        """What an image is called in messages."""
        named = self.files[index]
        return f"{self.places[index]}, {named}" if self.places else named

    def decoded(self, index: int) -> np.ndarray:
        """Decodes an image; see `image_files.decoded`."""
        path = os.path.join(self.folder, self.files[index])
        return image_files.decoded(path, size=self.side)

    def not_held(self, kept: Sequence[int], counted: Counted) -> decoding.NotHeld:
        """Returns some of the images, to be read again."""
        files = tuple(self.files[i] for i in kept)
        shape = (len(files), *counted.shape)
        return file_images.FileImages(
            self.folder, files, shape, self.side, counted.pixel_counts, counted.checksum
        )


class Counted:
    """Counts the pixels of images and leaves the images where they are.

    Attributes:
      shape: of each of them.
      pixel_counts: see `decoding.pixel_counts`.
      checksum: of the array that they would be.
    """

    def __init__(self, shape: tuple[int, ...]):
        """Nothing is counted yet."""
        self.shape = shape
        self.pixel_counts = np.zeros((shape[-1], 256), np.int64)
        self.checksum = checksums.crc32(b"")

    def add(self, pixels: np.ndarray) -> None:
        """Takes uint8 [h, w, c]."""
        self.pixel_counts += decoding.pixel_counts(pixels[np.newaxis])
        self.checksum = checksums.crc32(pixels, int(self.checksum, 16))


class _Held:
    """Holds images in memory."""

    def __init__(self, count: int, shape: tuple[int, ...]):
        self.shape, self._filled = shape, 0
        self._images = decoding.empty((count, *shape), np.uint8)

    def add(self, pixels: np.ndarray) -> None:
        """Takes uint8 [h, w, c]."""
        self._images[self._filled] = pixels
        self._filled += 1

    def found(self) -> np.ndarray:
        """Returns those that were added."""
        return self._images[: self._filled]


def decode(
    data: sections.Data,
    encoded: Encoded,
    count: int,
    others: int | np.ndarray | decoding.NotHeld,
    bad: list[str],
) -> tuple[np.ndarray | decoding.NotHeld, list[int]]:
    """Decodes images, in order; those that cannot be are left out.

    Args:
      data: `dataset` and `max_data_gib` are read.
      encoded: the images.
      count: how many there are.
      others: of the other split: how many images there are, or these, of the same
        shape.
      bad: gets the place and the reason of each that cannot be read.

    Returns:
      The images, and the indices of those that were decoded.

    Raises:
      DataError: they are of unequal size.
    """
    kept: list[int] = []
    store: _Held | Counted | None = None

    def read(index: int) -> np.ndarray | str:
        try:
            return encoded.decoded(index)
        except errors.DataError as error:
            return str(error)

    for index, pixels in enumerate(image_files.in_parallel(read, range(count))):
        if isinstance(pixels, str):
            bad.append(f"{encoded.place(index)}: {pixels}")
            continue
        if store is None:
            store = _store(data, count, others, pixels)
        if pixels.shape != store.shape:
            place = encoded.place(index)
            raise decoding.unequal(data.dataset, store.shape, pixels[np.newaxis], place)
        store.add(pixels)
        kept.append(index)
    if store is None:
        return np.empty((0, 1, 1, 3), np.uint8), kept
    if isinstance(store, Counted):
        return encoded.not_held(kept, store), kept
    return store.found(), kept


def _store(
    data: sections.Data,
    count: int,
    others: int | np.ndarray | decoding.NotHeld,
    pixels: np.ndarray,
) -> _Held | Counted:
    """Decides where the images go, seeing the first of them."""
    is_first = isinstance(others, int) or not others.shape[0]
    shape = pixels.shape if is_first else others.shape[1:]
    if holds(data, count, others, pixels.nbytes):
        return _Held(count, shape)
    return Counted(shape)


def holds(
    data: sections.Data,
    count: int,
    others: int | np.ndarray | decoding.NotHeld,
    size: int,
) -> bool:
    """Decides whether examples are held in memory; see `decode`.

    Args:
      data: likewise.
      count: likewise.
      others: likewise.
      size: bytes of an example.
    """
    if isinstance(others, int):
        return fits(data, (count + others) * size)
    if not others.shape[0]:
        return fits(data, count * size)
    return isinstance(others, np.ndarray)


def fits(data: sections.Data, size: int) -> bool:
    """Whether so many bytes of images are held; a warning says where they are not."""
    if size / 2**30 <= data.max_data_gib:
        return True
    logger.warning(
        "'%s' takes %.3g GiB decoded, more than --max_data_gib (%g): its images are "
        "read as they are needed.",
        data.dataset,
        size / 2**30,
        data.max_data_gib,
    )
    return False
