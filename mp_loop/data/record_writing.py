"""Turns images in files, or in a TFDS data set, into ArrayRecord files.

    record_writing.write(data, "photos.records", tell=bar.update)

The records are what the files hold, byte for byte. All images are decoded once, so that
what is bad is found here, and a run need not read them all to begin.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow_datasets as tfds

from mp_loop.config import errors, json_values, names, sections
from mp_loop.data import (
    array_records,
    bad_examples,
    classes,
    decoding,
    download,
    image_files,
    image_folders,
    image_stores,
    resizing,
    splitting,
)

if TYPE_CHECKING:  # It may not be installed.
    from array_record.python import array_record_module

# Of one file: it is copied in one piece.
_FILE_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class _Example:
    """An encoded image.

    Attributes:
      name: what it is called in messages.
      label: its class, by number or by name.
      content: returns what a file of it holds; raises DataError.
    """

    name: str
    label: int | str
    content: Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class _Input:
    """What is converted.

    Attributes:
      counts: the number of images of each split.
      examples: yields those of a split, by its place in `array_records.SPLITS`.
      class_names: of the numbers 0, 1, ...; None: labels are names.
      channels: of the images.
    """

    counts: tuple[int, int]
    examples: Callable[[int], Iterator[_Example]]
    class_names: tuple[str, ...] | None
    channels: int


class _Writer:
    """Writes the files of a split, and notes what is in them."""

    def __init__(self, folder: pathlib.Path, split: str):
        """Opens no file yet."""
        self.files: list[str] = []
        self.names: list[str] = []
        self.labels: list[int | str] = []
        self.checksum = 0
        self._folder, self._split = folder, split
        self._writer: array_record_module.ArrayRecordWriter | None = None
        self._bytes = 0

    def add(self, example: _Example, content: bytes) -> None:
        """Writes a record."""
        if self._writer is None or self._bytes > _FILE_BYTES:
            self.close()
            self.files.append(f"{self._split}-{len(self.files):05d}.array_record")
            _, module = array_records.array_record_modules()
            path = str(self._folder / self.files[-1])
            # A group is what is read at once.
            self._writer = module.ArrayRecordWriter(path, "group_size:1")
            self._bytes = 0
        self._writer.write(content)
        self._bytes += len(content)
        self.checksum = zlib.crc32(content, self.checksum)
        self.names.append(example.name)
        self.labels.append(example.label)

    def close(self) -> None:
        """Closes the file that is open."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def describe(
        self, numbers: np.ndarray, counted: image_stores.Counted
    ) -> dict[str, json_values.Json]:
        """Writes what is known of the images; returns what the manifest says."""
        index = array_records.index_of(self._split)
        np.savez(
            self._folder / index,
            labels=numbers,
            names=np.array(self.names, str),
            pixel_counts=counted.pixel_counts,
        )
        files = (*self.files, index)
        return {
            "count": len(self.names),
            "bytes": {name: os.path.getsize(self._folder / name) for name in files},
            "crc32": f"{self.checksum:08x}",
            "crc32_decoded": counted.checksum,
        }


def count(data: sections.Data) -> int:
    """Returns how many images there are to be converted; reads none of them.

    Args:
      data: as for `write`.

    Raises:
      DataError: as of `write`.
    """
    return sum(_input(data).counts)


def write(
    data: sections.Data, folder: pathlib.Path, tell: Callable[[], object] = lambda: None
) -> dict[str, json_values.Json]:
    """Writes the images of both splits, and at last the manifest.

    Args:
      data: `dataset` (`folder:PATH`, or of TFDS) and what belongs to it; with
        `image_size` and `crop_pct`, images of unequal sizes are taken, and runs of the
        same two need not read all images to begin.
      folder: a new folder.
      tell: called after each image.

    Returns:
      The manifest.

    Raises:
      DataError: something cannot be used; images are of unequal size without
        `image_size`; or ArrayRecord is not installed.
      OSError: the folder cannot be written.
    """
    given = _input(data)
    bad: list[str] = []
    manifest: dict[str, json_values.Json] = {
        "format": array_records.FORMAT,
        "splits": {},
    }
    found: list[tuple[_Writer, image_stores.Counted | None]] = []
    for place, split in enumerate(array_records.SPLITS):
        writer = _Writer(folder, split)
        shape = found[0][1].shape if found and found[0][1] else None
        counted = _copied(data, given, place, writer, bad, tell, shape)
        found.append((writer, counted))
    writers = [writer for writer, _ in found]
    class_names, numbers = _classes(data, given, writers, bad)
    for split, (writer, counted), labels in zip(
        array_records.SPLITS, found, numbers, strict=True
    ):
        manifest["splits"][split] = writer.describe(labels, counted)
        manifest["shape"] = list(counted.shape)
    manifest |= {
        "class_names": list(class_names),
        "channels": given.channels,
        "resized_to": resizing.whole_side(data),
    }
    path = folder / array_records.MANIFEST
    path.write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    return manifest


def _copied(
    data: sections.Data,
    given: _Input,
    place: int,
    writer: _Writer,
    bad: list[str],
    tell: Callable[[], object],
    shape: tuple[int, ...] | None,
) -> image_stores.Counted | None:
    """Writes the images of a split; returns what was seen of them."""
    side = resizing.whole_side(data)
    counted: image_stores.Counted | None = None

    def read(example: _Example) -> tuple[_Example, bytes, np.ndarray | str]:
        try:
            content = example.content()
            pixels = image_files.decoded_content(content, given.channels, side)
            return example, content, pixels
        except errors.DataError as error:
            return example, b"", str(error)

    for example, content, pixels in image_files.in_parallel(
        read, given.examples(place)
    ):
        tell()
        if isinstance(pixels, str):
            bad.append(f"{example.name}: {pixels}")
            continue
        counted = counted or image_stores.Counted(shape or pixels.shape)
        if pixels.shape != counted.shape:
            raise decoding.unequal(
                data.dataset, counted.shape, pixels[np.newaxis], example.name
            )
        counted.add(pixels)
        writer.add(example, content)
    writer.close()
    return counted


def _classes(
    data: sections.Data, given: _Input, writers: Sequence[_Writer], bad: list[str]
) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Returns the names of the classes, and the numbers of all labels."""
    bad_examples.settle(data.dataset, bad, data.skip_bad_examples)
    if given.class_names is not None:
        return given.class_names, [np.array(w.labels, np.int64) for w in writers]
    train, test = (np.array(writer.labels, str) for writer in writers)
    missing: list[str] = []
    classes.with_training(train, test, missing)
    if missing:
        raise errors.DataError(f"Data set '{data.dataset}': {missing[0]}.")
    classes.check(data, train, test, image_folders.HINT)
    known = np.unique(train)
    numbers = [np.searchsorted(known, x).astype(np.int64) for x in (train, test)]
    return tuple(map(str, known)), numbers


def _input(data: sections.Data) -> _Input:
    """Finds what is to be converted."""
    kind, path = names.local_path(data.dataset) or ("", "")
    if kind not in ("", "folder"):
        raise errors.DataError(
            f"`dataset` ('{data.dataset}') must be folder:PATH or a TFDS data set: "
            "images are converted."
        )
    return _of_folder(data, path) if kind else _of_tfds(data)


def _of_folder(data: sections.Data, folder: str) -> _Input:
    splits = image_folders.listed(data, folder)

    def examples(place: int) -> Iterator[_Example]:
        for file, label in splits[place]:
            path = os.path.join(folder, file)
            yield _Example(
                bad_examples.readable(file),
                label,
                functools.partial(image_files.content, path),
            )

    return _Input((len(splits[0]), len(splits[1])), examples, None, channels=3)


def _of_tfds(data: sections.Data) -> _Input:
    name = data.dataset
    builder = download.prepared_builder(name, data.data_dir)
    info = builder.info
    key, label = decoding.feature_names(name, info, text=False)
    splits = ("train", splitting.of_tfds(name, info.splits))
    channels = info.features[key].shape[-1]
    if channels not in (1, 3):
        raise errors.DataError(f"Data set '{name}' has images of {channels} channels.")
    skip = {key: tfds.decode.SkipDecoding()}

    def examples(place: int) -> Iterator[_Example]:
        stored = decoding.stored(name, builder, splits[place], (key, label), 1, skip)
        for i, batch in zip(itertools.count(), stored):
            content, number = batch[key][0], int(batch[label][0])
            yield _Example(f"{splits[place]} {i}", number, lambda c=content: c)

    counts = tuple(info.splits[split].num_examples for split in splits)
    return _Input(counts, examples, tuple(info.features[label].names), channels)
