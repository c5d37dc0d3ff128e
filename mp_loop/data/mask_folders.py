"""Images with their masks, in two folders.

    PATH/images/*.jpg         and PATH/masks/*.png of the same names, some of which are
                              held out, by a hash of their names
    PATH/train/images/...     and PATH/train/masks, PATH/test/images, PATH/test/masks

A mask is a PNG of the size of its image; see `mask_files`.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from mp_loop.config import errors, sections
from mp_loop.data import (
    classes,
    decoding,
    file_masks,
    image_files,
    image_stores,
    mask_files,
    masks,
    resizing,
    splitting,
)

IMAGES, MASKS = "images", "masks"
_HINT = "PATH/train and PATH/test hold images and masks"


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Attributes:
      image: the path of the image, relative to the folder of all, with slashes.
      mask: likewise.
    """

    image: str
    mask: str


def load(data: sections.Data, folder: str) -> decoding.Labelled:
    """Decodes all images and masks of a folder.

    Args:
      data: `dataset`, `image_size`, `crop_pct`, `validation_fraction`, `ignore_label`,
        `max_data_gib` and `skip_bad_examples` are read.
      folder: its path.

    Raises:
      DataError: something cannot be used, or images are of unequal size without
        `image_size`.
    """
    bad: list[str] = []
    train, test = _splits(data, folder, bad)
    first = _decoded(data, folder, train, len(test), bad)
    like = first.inputs if len(first.labels) else 0
    parts = first, _decoded(data, folder, test, like, bad)
    return masks.assemble(data, parts, bad, _HINT)


def of_split(data: sections.Data, folder: str, split: str) -> list[Pair]:
    """Lists the images and masks of a split, without reading them.

    Args:
      data: `dataset` and `validation_fraction` are read.
      folder: its path.
      split: `train` or `test`.

    Raises:
      DataError: there is no such split, or a folder cannot be read.
    """
    splitting.check_name(data.dataset, split)
    return _splits(data, folder, [])[split != splitting.TRAIN]


def is_one(folder: str) -> bool:
    """Tells whether a folder holds images and masks, or splits of them."""
    return _has_both(folder, "") or _has_both(folder, f"{splitting.TRAIN}/")


def _has_both(folder: str, before: str) -> bool:
    return all(
        os.path.isdir(os.path.join(folder, before, name)) for name in (IMAGES, MASKS)
    )


def _splits(
    data: sections.Data, folder: str, bad: list[str]
) -> tuple[list[Pair], list[Pair]]:
    """Finds what to train and to evaluate on."""
    train = f"{splitting.TRAIN}/"
    if _has_both(folder, train):
        tests = [f"{name}/" for name in splitting.TEST if _has_both(folder, f"{name}/")]
        found = _pairs(folder, train, bad)
        if tests:
            return found, _pairs(folder, tests[0], bad)
    elif _has_both(folder, ""):
        found = _pairs(folder, "", bad)
    else:
        raise errors.DataError(
            f"Data set '{data.dataset}' must hold the folders {IMAGES} and {MASKS}, or "
            "train and test with these in them, for --task=segmentation."
        )
    fraction = data.validation_fraction
    held = [splitting.is_held_out(pair.image, fraction) for pair in found]
    parts = list(zip(found, held, strict=True))
    return [x for x, out in parts if not out], [x for x, out in parts if out]


def _pairs(folder: str, before: str, bad: list[str]) -> list[Pair]:
    """Finds the images of a split and their masks; notes what is alone."""
    images, found = (
        image_files.listed(os.path.join(folder, before, name))
        for name in (IMAGES, MASKS)
    )
    left = {os.path.splitext(name)[0]: name for name in found}
    pairs: dict[str, Pair] = {}
    for name in images:
        stem = os.path.splitext(name)[0]
        place = f"{before}{IMAGES}/{name}"
        if stem in pairs:
            bad.append(f"{place}: another image has this name")
        elif stem not in left:
            bad.append(f"{place}: there is no {before}{MASKS}/{stem}.png")
        else:
            pairs[stem] = Pair(place, f"{before}{MASKS}/{left[stem]}")
    for stem in sorted(left.keys() - pairs.keys()):
        bad.append(f"{before}{MASKS}/{left[stem]}: there is no image of this name")
    return list(pairs.values())


def read(
    folder: str, pair: Pair, size: int, channels: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes an image and its mask.

    Args:
      folder: of all.
      pair: their paths.
      size: the side of the squares that they are resized to; 0: unchanged.
      channels: of the image, 3 or 1.

    Returns:
      uint8 [h, w, channels] and [h, w].

    Raises:
      DataError: one of them cannot be read, or they differ in size; the message tells
        which.
    """
    try:
        image = image_files.decoded(os.path.join(folder, pair.image), channels)
    except errors.DataError as error:
        raise errors.DataError(f"{pair.image}: {error}") from error
    try:
        mask = mask_files.decoded(os.path.join(folder, pair.mask))
    except errors.DataError as error:
        raise errors.DataError(f"{pair.mask}: {error}") from error
    if mask.shape != image.shape[:2]:
        raise errors.DataError(
            f"{pair.mask}: is {mask.shape}, and its image {image.shape[:2]}"
        )
    if size:
        image = resizing.resized(image[np.newaxis], size)[0]
        mask = masks.resized(mask[np.newaxis], size)[0]
    return image, mask


def _decoded(
    data: sections.Data,
    folder: str,
    pairs: list[Pair],
    others: int | np.ndarray | decoding.NotHeld,
    bad: list[str],
) -> classes.Part:
    """Decodes images and masks, in order; what cannot be is left out, and named.

    They are held as `image_stores.decode` holds images.
    """
    side = resizing.whole_side(data)

    def one(pair: Pair) -> tuple[np.ndarray, np.ndarray] | str:
        try:
            return read(folder, pair, side)
        except errors.DataError as error:
            return str(error)

    store: _Held | _Counted | None = None
    kept: list[Pair] = []
    found = image_files.in_parallel(one, pairs)
    for pair, pixels in zip(pairs, found, strict=True):
        if isinstance(pixels, str):
            bad.append(pixels)
            continue
        image, mask = pixels
        if store is None:
            size = image.nbytes + mask.nbytes
            held = image_stores.holds(data, len(pairs), others, size)
            shape = image.shape if isinstance(others, int) else others.shape[1:]
            store = _Held(len(pairs), shape) if held else _Counted(data, shape)
        if image.shape != store.shape:
            raise decoding.unequal(
                data.dataset, store.shape, image[np.newaxis], pair.image
            )
        store.add(image, mask)
        kept.append(pair)
    if store is None:
        return classes.Part(np.empty((0, 1, 1, 3), np.uint8), np.empty((0, 1, 1), "u1"))
    return store.part(folder, tuple(kept))


class _Held:
    """Holds images and masks in memory."""

    def __init__(self, count: int, shape: tuple[int, ...]):
        self.shape, self._filled = shape, 0
        self._images = np.empty((count, *shape), np.uint8)
        self._masks = np.empty((count, *shape[:2]), np.uint8)

    def add(self, image: np.ndarray, mask: np.ndarray) -> None:
        """Takes uint8 [h, w, 3] and [h, w]."""
        self._images[self._filled], self._masks[self._filled] = image, mask
        self._filled += 1

    def part(self, _folder: str, pairs: tuple[Pair, ...]) -> classes.Part:
        """Returns those that were added, which these pairs are."""
        names = tuple(pair.image for pair in pairs)
        filled = slice(self._filled)
        return classes.Part(self._images[filled], self._masks[filled], names)


class _Counted:
    """Counts the pixels of images and masks and leaves them in their files."""

    def __init__(self, data: sections.Data, shape: tuple[int, ...]):
        self.shape = shape
        self._side = resizing.whole_side(data)
        self._images = image_stores.Counted(shape)
        self._masks = file_masks.Counted(data.image_size)

    def add(self, image: np.ndarray, mask: np.ndarray) -> None:
        """Takes uint8 [h, w, 3] and [h, w]."""
        self._images.add(image)
        self._masks.add(mask)

    def part(self, folder: str, pairs: tuple[Pair, ...]) -> classes.Part:
        """Returns those that were added, which these pairs are."""
        names = tuple(pair.image for pair in pairs)
        files = image_stores.Files(folder, names, self._side)
        images = files.not_held(range(len(names)), self._images)
        of_masks = tuple(pair.mask for pair in pairs)
        made = self._masks.of(folder, of_masks, self.shape[:2], self._side)
        return classes.Part(images, made, names)
