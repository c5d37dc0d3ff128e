"""Images in a folder for each class, held in memory.

    PATH/train/CLASS/*.jpg      and PATH/test, PATH/validation, PATH/val or PATH/valid
    PATH/CLASS/*.jpg            some of which are held out, by a hash of their names

What cannot be used (an unreadable image, a class without images, an image without a
class) is refused, all of it at once, or left out with a warning.
"""

from __future__ import annotations

import dataclasses
import functools
import os

import numpy as np

from mp_loop.config import errors, sections
from mp_loop.data import bad_examples, decoding, image_files, splitting

_TRAIN = "train"
_TEST = ("test", "validation", "val", "valid")


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
      data: `dataset`, `image_size`, `crop_pct`, `validation_fraction` and
        `skip_bad_examples` are read.
      folder: its path.

    Returns:
      Images uint8 [n, h, w, 3], by the names of their files; classes by their names.

    Raises:
      DataError: something cannot be used, there are fewer than two classes, images are
        of unequal size without `image_size`, or there is too much for the memory.
    """
    name, skip = data.dataset, data.skip_bad_examples
    bad: list[str] = []
    train, test = _splits(data, folder, bad)
    train, test = _of_classes(train, test, bad)
    bad_examples.settle(name, bad, skip)
    _check_counts(data, train, test)
    size = decoding.whole_side(data)
    bad = []
    train, inputs = _decoded(name, folder, train, size, None, bad)
    like = inputs if train else None
    test, test_inputs = _decoded(name, folder, test, size, like, bad)
    kept, kept_test = _of_classes(train, test, bad)
    bad_examples.settle(name, bad, skip)
    _check_counts(data, kept, kept_test)
    class_names = tuple(sorted({image.label for image in kept}))
    if kept_test != test:  # a class has lost its last image to train on
        test_inputs = test_inputs[[image in set(kept_test) for image in test]]
    numbers = {label: number for number, label in enumerate(class_names)}
    return decoding.Labelled(
        train=decoding.Split(inputs, _labels(kept, numbers)),
        test=decoding.Split(test_inputs, _labels(kept_test, numbers)),
        class_names=class_names,
    )


def _splits(
    data: sections.Data, folder: str, bad: list[str]
) -> tuple[_Images, _Images]:
    """Finds the images to train and to evaluate on."""
    inside = {x.name.lower(): x.name for x in image_files.entries(folder) if x.is_dir()}
    if not _has_folders(folder, inside.get(_TRAIN)):
        images = _of_folder(folder, "", bad)
    else:
        train = _of_folder(folder, f"{inside[_TRAIN]}/", bad)
        held_out = next((inside[x] for x in _TEST if x in inside), None)
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
    """Finds the images of the classes in `folder`/`before`, sorted."""
    found = []
    for entry in image_files.entries(os.path.join(folder, before)):
        place = f"{before}{entry.name}"
        if not entry.is_dir():
            if image_files.is_image(entry.name):
                bad.append(f"{place}: is in no class's folder")
            continue
        inside = image_files.entries(entry.path)
        files = [x for x in inside if not x.is_dir() and image_files.is_image(x.name)]
        found += [_Image(f"{place}/{x.name}", entry.name) for x in files]
        folders = [f"{place}/{x.name}" for x in inside if x.is_dir()]
        bad += [f"{x}: is a folder in that of a class" for x in folders]
        if not files and not folders:
            bad.append(f"{place}: holds no image")
    return tuple(found)


def _of_classes(
    train: _Images, test: _Images, bad: list[str]
) -> tuple[_Images, _Images]:
    """Leaves out the test images of classes that have no image to train on."""
    known = {image.label for image in train}
    lost = sorted({image.label for image in test} - known)
    for label in lost:
        count = sum(image.label == label for image in test)
        bad.append(
            f"class {label}: none of its images is to train on, {count} to evaluate on"
        )
    return train, tuple(image for image in test if image.label in known)


def _check_counts(data: sections.Data, train: _Images, test: _Images) -> None:
    """Refuses what nothing can be learned from, or be evaluated on."""
    classes = sorted({image.label for image in train})
    if len(classes) < 2:
        found = f"the class '{classes[0]}' alone" if classes else "no image"
        raise errors.DataError(
            f"Data set '{data.dataset}' has {found} to train on; a folder of images "
            "for each of two classes or more is needed, in PATH or in PATH/train."
        )
    if not test:
        raise errors.DataError(
            f"Data set '{data.dataset}' has no image to evaluate on, of "
            f"{len(train)}; --validation_fraction ({data.validation_fraction:g}) can "
            "be larger, or PATH/train and PATH/test hold the classes."
        )


def _decoded(
    name: str,
    folder: str,
    images: _Images,
    size: int,
    like: np.ndarray | None,
    bad: list[str],
) -> tuple[_Images, np.ndarray]:
    """Decodes images, in order; those that cannot be are left out, and named in `bad`.

    Args:
      name: of the data set.
      folder: of all images.
      images: one at least.
      size: side of the square that each becomes; 0: as they are.
      like: other images that are held, of the same shape.
      bad: gets the place and the reason of each that cannot be read.
    """
    inputs, kept = None, []
    read = functools.partial(_read, folder, size)
    for image, pixels in zip(
        images, image_files.in_parallel(read, images), strict=True
    ):
        if isinstance(pixels, str):
            bad.append(f"{image.file}: {pixels}")
            continue
        if inputs is None:
            inputs = decoding.allocate(name, len(images), pixels, like)
        if pixels.shape[1:] != inputs.shape[1:]:
            raise decoding.unequal(name, inputs, pixels, image.file)
        inputs[len(kept)] = pixels[0]
        kept.append(image)
    if inputs is None:
        return (), np.empty((0, 1, 1, 3), np.uint8)
    return tuple(kept), inputs[: len(kept)]


def _read(folder: str, size: int, image: _Image) -> np.ndarray | str:
    """Returns uint8 [1, h, w, 3], or why a file cannot be read."""
    try:
        pixels = image_files.decoded(os.path.join(folder, image.file))[np.newaxis]
    except errors.DataError as error:
        return str(error)
    return decoding.resized(pixels, size) if size else pixels


def _labels(images: _Images, numbers: dict[str, int]) -> np.ndarray:
    return np.array([numbers[image.label] for image in images], np.int64)
