"""Images in a folder for each class, held in memory or read as they are needed.

    PATH/train/CLASS/*.jpg      and PATH/test, PATH/validation, PATH/val or PATH/valid
    PATH/CLASS/*.jpg            some of which are held out, by a hash of their names

What cannot be used (an unreadable image, a class without images, an image without a
class) is refused, all of it at once, or left out with a warning.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Sequence

import numpy as np

from mp_loop.config import errors, sections
from mp_loop.data import (
    bad_examples,
    checksums,
    classes,
    decoding,
    file_images,
    image_files,
    splitting,
)

logger = logging.getLogger(__name__)

_HINT = "PATH/train and PATH/test hold the classes"


@dataclasses.dataclass(frozen=True)
class _Image:
    """A file.

    Attributes:
      file: its path, relative to the folder of all images, with slashes.
      label: the name of its class.
    """

    file: str
    label: str


_Images = tuple[_Image, ...]


def load(data: sections.Data, folder: str) -> decoding.Labelled:
    """Decodes all images of a folder.

    Args:
      data: `dataset`, `image_size`, `crop_pct`, `validation_fraction`,
        `max_data_gib` and `skip_bad_examples` are read.
      folder: its path.

    Returns:
      Images uint8 [n, h, w, 3], by the names of their files; classes by their names.

    Raises:
      DataError: something cannot be used, there are fewer than two classes, or images
        are of unequal size without `image_size`.
    """
    name, bad = data.dataset, []
    train, test = _splits(data, folder, bad)
    kept = classes.with_training(_labels(train), _labels(test), bad)
    test = tuple(itertools.compress(test, kept))
    bad_examples.settle(name, bad, data.skip_bad_examples)
    classes.check(data, _labels(train), _labels(test), _HINT)
    bad = []
    train = _decoded(data, folder, train, len(test), bad)
    test = _decoded(data, folder, test, train.inputs, bad)
    return classes.assemble(data, (train, test), bad, _HINT)


def of_split(data: sections.Data, folder: str, split: str) -> list[tuple[str, str]]:
    """Lists the images of a split, without reading them.

    Args:
      data: `dataset` and `validation_fraction` are read.
      folder: its path.
      split: `train` or `test`.

    Returns:
      The path of each image, relative to the folder, and the name of its class.

    Raises:
      DataError: there is no such split, or a folder cannot be read.
    """
    splitting.check_name(data.dataset, split)
    images = _splits(data, folder, [])[split != splitting.TRAIN]
    return [(image.file, image.label) for image in images]


def _splits(
    data: sections.Data, folder: str, bad: list[str]
) -> tuple[_Images, _Images]:
    """Finds the images to train and to evaluate on."""
    inside = {x.name.lower(): x.name for x in image_files.entries(folder) if x.is_dir()}
    if not _has_folders(folder, inside.get(splitting.TRAIN)):
        if inside and set(inside) <= {splitting.TRAIN, *splitting.TEST}:
            raise errors.DataError(
                f"Data set '{data.dataset}': '{next(iter(inside.values()))}' must hold "
                "a folder for each class, in PATH/train; it would be taken for a class."
            )
        images = _of_folder(folder, "", bad)
    else:
        train = _of_folder(folder, f"{inside[splitting.TRAIN]}/", bad)
        held_out = next((inside[x] for x in splitting.TEST if x in inside), None)
        if held_out is not None:
            return train, _of_folder(folder, f"{held_out}/", bad)
        images = train
    fraction = data.validation_fraction
    held = [splitting.is_held_out(image.file, fraction) for image in images]
    pairs = list(zip(images, held, strict=True))
    return tuple(x for x, out in pairs if not out), tuple(x for x, out in pairs if out)


def _has_folders(folder: str, name: str | None) -> bool:
    """Tells whether a folder of this name holds folders: those of classes."""
    if name is None:
        return False
    return any(x.is_dir() for x in image_files.entries(os.path.join(folder, name)))


def _of_folder(folder: str, before: str, bad: list[str]) -> _Images:
    """Finds the images of the classes in a folder, sorted.

    Args:
      folder: that of all images.
      before: the path in it of the folder of classes: "", or of a split, "train/".
      bad: gets what is no image of a class.
    """
    found = []
    for entry in image_files.entries(os.path.join(folder, before)):
        place = f"{before}{entry.name}"
        if not entry.is_dir():
            if image_files.is_image(entry.name):
                bad.append(f"{place}: is in no class's folder")
            continue
        if bad_examples.readable(entry.name) != entry.name:
            bad.append(f"{place}: the name of a class must be text in UTF-8")
            continue
        inside = image_files.entries(entry.path)
        files = [x for x in inside if not x.is_dir() and image_files.is_image(x.name)]
        found += [_Image(f"{place}/{x.name}", entry.name) for x in files]
        folders = [f"{place}/{x.name}" for x in inside if x.is_dir()]
        bad += [f"{x}: is a folder in that of a class" for x in folders]
        if not files and not folders:
            bad.append(f"{place}: holds no image")
    return tuple(found)


def _decoded(
    data: sections.Data,
    folder: str,
    images: _Images,
    others: int | np.ndarray | file_images.FileImages,
    bad: list[str],
) -> classes.Part:
    """Decodes images, in order; those that cannot be are left out, and named in `bad`.

    Args:
      data: see `load`.
      folder: of all images.
      images: one at least.
      others: of the other split: how many images there are, or these, of the same
        shape.
      bad: gets the place and the reason of each that cannot be read.
    """
    kept = []
    store: _Held | _Counted | None = None
    read = functools.partial(_read, folder, decoding.whole_side(data))
    results = image_files.in_parallel(read, images)
    for image, pixels in zip(images, results, strict=True):
        if isinstance(pixels, str):
            bad.append(f"{image.file}: {pixels}")
            continue
        if store is None:
            store = _store(data, folder, len(images), others, pixels)
        if pixels.shape[1:] != store.shape:
            raise decoding.unequal(data.dataset, store.shape, pixels, image.file)
        store.add(pixels)
        kept.append(image)
    if store is None:
        return classes.Part(np.empty((0, 1, 1, 3), np.uint8), _labels(kept))
    files = tuple(image.file for image in kept)
    return classes.Part(store.found(files), _labels(kept))


def _store(
    data: sections.Data,
    folder: str,
    count: int,
    others: int | np.ndarray | file_images.FileImages,
    pixels: np.ndarray,
) -> _Held | _Counted:
    """Decides where the images go, seeing the first of them."""
    side = decoding.whole_side(data)
    if isinstance(others, file_images.FileImages):
        return _Counted(others.shape[1:], folder, side)
    if isinstance(others, np.ndarray) and len(others):
        return _Held(count, others.shape[1:])
    more = others if isinstance(others, int) else 0
    size = (count + more) * pixels.nbytes / 2**30
    if size <= data.max_data_gib:
        return _Held(count, pixels.shape[1:])
    logger.warning(
        "'%s' takes %.3g GiB decoded, more than --max_data_gib (%g): its images are "
        "read as they are needed.",
        data.dataset,
        size,
        data.max_data_gib,
    )
    return _Counted(pixels.shape[1:], folder, side)


class _Held:
    """Holds images in memory."""

    def __init__(self, count: int, shape: tuple[int, ...]):
        self.shape, self._filled = shape, 0
        self._images = np.empty((count, *shape), np.uint8)

    def add(self, pixels: np.ndarray) -> None:
        """Takes uint8 [1, h, w, 3]."""
        self._images[self._filled] = pixels[0]
        self._filled += 1

    def found(self, files: tuple[str, ...]) -> np.ndarray:
        """Returns all images, those of so many files."""
        return self._images[: len(files)]


class _Counted:
    """Counts the pixels of images and leaves them where they are."""

    def __init__(self, shape: tuple[int, ...], folder: str, side: int):
        self.shape, self._folder, self._side = shape, folder, side
        self._counts = np.zeros((shape[-1], 256), np.int64)
        self._checksum = checksums.crc32(b"")

    def add(self, pixels: np.ndarray) -> None:
        """Takes uint8 [1, h, w, 3]."""
        self._counts += decoding.pixel_counts(pixels)
        self._checksum = checksums.crc32(pixels, int(self._checksum, 16))

    def found(self, files: tuple[str, ...]) -> file_images.FileImages:
        """Returns what reads them again."""
        shape = (len(files), *self.shape)
        return file_images.FileImages(
            self._folder, files, shape, self._side, self._counts, self._checksum
        )


def _read(folder: str, size: int, image: _Image) -> np.ndarray | str:
    """Returns uint8 [1, h, w, 3], or why a file cannot be read."""
    try:
        path = os.path.join(folder, image.file)
        return image_files.decoded(path, size=size)[np.newaxis]
    except errors.DataError as error:
        return str(error)


def _labels(images: Sequence[_Image]) -> np.ndarray:
    return np.array([image.label for image in images], str)
