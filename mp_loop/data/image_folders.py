"""Images in a folder for each class, held in memory or read as they are needed.

    PATH/train/CLASS/*.jpg      and PATH/test, PATH/validation, PATH/val or PATH/valid
    PATH/CLASS/*.jpg            some of which are held out, by a hash of their names

What cannot be used (an unreadable image, a class without images, an image without a
class) is refused, all of it at once, or left out with a warning.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence

import numpy as np

from mp_loop.config import errors, sections
from mp_loop.data import (
    bad_examples,
    classes,
    decoding,
    image_files,
    image_stores,
    resizing,
    splitting,
)

HINT = "PATH/train and PATH/test hold the classes"


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
    train, test = _usable(data, folder)
    bad: list[str] = []
    train = _decoded(data, folder, train, len(test), bad)
    test = _decoded(data, folder, test, train.inputs, bad)
    return classes.assemble(data, (train, test), bad, HINT)


def listed(
    data: sections.Data, folder: str
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Lists the images of both splits that `load` would decode.

    Args:
      data: as for `load`.
      folder: its path.

    Returns:
      For each split the path of each image, relative to the folder, and its class.

    Raises:
      DataError: as of `load`, without the images being read.
    """
    train, test = (
        [(image.file, image.label) for image in images]
        for images in _usable(data, folder)
    )
    return train, test


def _usable(data: sections.Data, folder: str) -> tuple[_Images, _Images]:
    """The images of both splits, if one can learn from them; see `load`."""
    bad: list[str] = []
    train, test = _splits(data, folder, bad)
    kept = classes.with_training(_labels(train), _labels(test), bad)
    test = tuple(itertools.compress(test, kept))
    bad_examples.settle(data.dataset, bad, data.skip_bad_examples)
    classes.check(data, _labels(train), _labels(test), HINT)
    return train, test


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
    others: int | np.ndarray | decoding.NotHeld,
    bad: list[str],
) -> classes.Part:
    """Decodes images, in order; see `image_stores.decode`."""
    names = tuple(image.file for image in images)
    files = image_stores.Files(folder, names, resizing.whole_side(data))
    found, kept = image_stores.decode(data, files, len(names), others, bad)
    part = classes.Part(found, _labels([images[i] for i in kept]))
    return dataclasses.replace(part, names=tuple(names[i] for i in kept))


def _labels(images: Sequence[_Image]) -> np.ndarray:
    return np.array([image.label for image in images], str)
