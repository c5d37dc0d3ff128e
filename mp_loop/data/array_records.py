"""Encoded images in ArrayRecord files, which are read one by one, by their places.

    PATH/manifest.json                  classes, counts, sizes of files, checksums
    PATH/train-00000.array_record       what image files hold, as it is
    PATH/train.npz                      labels and names

`python -m mp_loop.convert` makes such a folder (`record_writing`). Images are decoded
as those of a folder of files are, so that a run has the same bits.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import types
import zipfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from mp_loop.config import errors, json_values, sections
from mp_loop.data import decoding, image_files, image_stores, resizing

if TYPE_CHECKING:  # It may not be installed.
    from array_record.python import array_record_data_source

MANIFEST = "manifest.json"
FORMAT = 1
SPLITS = ("train", "test")
_RECORDS_AT_ONCE = 64
_IN_ORDER = {"num_parallel_calls": 1, "deterministic": True}


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """The encoded images of a split: an `image_stores.Encoded`.

    Attributes:
      paths: of the files, in order.
      index: the file of what is known of each.
      labels: class numbers, int64 [n].
      channels: of the images, 1 or 3.
      side: of the squares that they are resized to; 0: as they are.
    """

    paths: tuple[str, ...]
    index: pathlib.Path
    labels: np.ndarray
    channels: int
    side: int

    @functools.cached_property
    def source(self) -> array_record_data_source.ArrayRecordDataSource:
        """ArrayRecord's own data source; threads may share it."""
        return array_record_modules()[0].ArrayRecordDataSource(list(self.paths))

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def _names(self) -> np.ndarray:
        # Read where one is asked for: of millions they take gigabytes.
        return _read(self.index, "names")

    def place(self, index: int) -> str:
        """What an image was called before it was a record."""
        return str(self._names[index])

    def content(self, index: int) -> bytes:
        """Reads a record.

        Raises:
          DataError: it cannot be read; the message is the reason, without the place.
        """
        try:
            return self.source[index]
        except Exception as error:  # Its own errors are of several types.
            raise errors.DataError(errors.because("unreadable", error)) from error

    def decoded(self, index: int) -> np.ndarray:
        """Decodes an image; see `image_files.decoded`."""
        content = self.content(index)
        return image_files.decoded_content(content, self.channels, self.side)

    def not_held(
        self, kept: Sequence[int], counted: image_stores.Counted
    ) -> RecordImages:
        """Returns the images, all of which are kept, to be read again."""
        shape = (len(kept), *counted.shape)
        return RecordImages(self, shape, counted.pixel_counts, counted.checksum)


@dataclasses.dataclass(frozen=True, eq=False)
class RecordImages:
    """Images that are decoded when they are wanted: a `decoding.NotHeld`.

    Attributes:
      records: all of them.
      shape: (n, h, w, c) of what they become.
      pixel_counts: see `decoding.pixel_counts`.
      checksum: of the array that these would be.
    """

    records: Records
    shape: tuple[int, ...]
    pixel_counts: np.ndarray
    checksum: str

    def row(self, index: tf.Tensor) -> tf.Tensor:
        """Decodes an image, uint8 [h, w, c].

        Args:
          index: integer [].

        Raises:
          tf.errors.OpError: when it runs: the record is damaged.
        """
        return self._decoded(self._contents(tf.reshape(index, [1]))[0])

    def rows(self, indices: tf.data.Dataset) -> tf.data.Dataset:
        """Decodes images, one by one; see `row`."""
        # Python is asked for many records at once: its lock is for one thread.
        contents = indices.batch(_RECORDS_AT_ONCE).map(self._contents, **_IN_ORDER)
        contents = contents.prefetch(1).unbatch()
        return contents.map(self._decoded, **decoding.PARALLEL)

    @tf.autograph.experimental.do_not_convert
    def _contents(self, index: tf.Tensor) -> tf.Tensor:
        """Reads records, string [n]."""
        records = self.records

        def named(place: int) -> bytes:
            try:
                return records.content(place)
            except errors.DataError as error:
                raise errors.DataError(f"{records.place(place)}: {error}") from error

        def read(places: np.ndarray) -> np.ndarray:
            try:
                contents = records.source.__getitems__(places.tolist())
            except Exception:  # One by one it can be named.
                contents = [named(place) for place in places.tolist()]
            return np.array(contents, object)

        return tf.ensure_shape(tf.numpy_function(read, [index], tf.string), [None])

    @tf.autograph.experimental.do_not_convert
    def _decoded(self, content: tf.Tensor) -> tf.Tensor:
        """Decodes a record, uint8 [h, w, c]."""
        decode = image_files.reader(self.shape[-1], self.records.side)
        return tf.ensure_shape(decode(content), self.shape[1:])


@dataclasses.dataclass(frozen=True)
class Store:
    """A folder of records.

    Attributes:
      name: as of `--dataset`.
      folder: its path.
      manifest: what `manifest.json` holds.
    """

    name: str
    folder: pathlib.Path
    manifest: json_values.Object

    @classmethod
    def open(cls, name: str, path: str) -> Store:
        """Reads the manifest, and compares the sizes of the files with it.

        Raises:
          DataError: the folder is no finished store, or files are missing or torn.
        """
        folder = pathlib.Path(path)
        try:
            manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
            if manifest["format"] != FORMAT:
                raise ValueError(f"its format is {manifest['format']}, not {FORMAT}")
            for split in SPLITS:
                for file, size in manifest["splits"][split]["bytes"].items():
                    if os.path.getsize(folder / file) != size:
                        raise ValueError(f"'{file}' is not as long as it was")
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise errors.DataError(
                errors.because(
                    f"Data set '{name}' must be a folder that "
                    "`python -m mp_loop.convert` has made",
                    why,
                )
            ) from error
        return cls(name, folder, manifest)

    def records(self, split: str, side: int) -> Records:
        """Returns the encoded images of a split.

        Args:
          split: `train` or `test`.
          side: of the squares that they are to be resized to; 0: as they are.

        Raises:
          DataError: they cannot be read.
        """
        described, index = self.manifest["splits"][split], self.folder / index_of(split)
        labels = _read(index, "labels")
        files = [file for file in described["bytes"] if file != index_of(split)]
        paths = tuple(str(self.folder / file) for file in files)
        found = Records(paths, index, labels, self.manifest["channels"], side)
        if not len(labels) == described["count"] == len(found.source):
            raise errors.DataError(
                f"Data set '{self.name}', split '{split}', has not as many images as "
                f"its manifest says ({described['count']})."
            )
        return found

    def counted(self, split: str, side: int) -> image_stores.Counted | None:
        """What was seen of the images when the store was made, resized so; or None."""
        if self.manifest["resized_to"] != side:
            return None
        found = image_stores.Counted(tuple(self.manifest["shape"]))
        found.pixel_counts = _read(self.folder / index_of(split), "pixel_counts")
        found.checksum = self.manifest["splits"][split]["crc32_decoded"]
        return found


def _read(path: pathlib.Path, name: str) -> np.ndarray:
    """Reads an array of the file of what is known of each image."""
    try:
        with np.load(path, allow_pickle=False) as index:
            return index[name]
    except (OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise errors.DataError(
            errors.because(f"'{path}' cannot be read", error)
        ) from error


def index_of(split: str) -> str:
    """The name of the file of labels, names and counts of pixels of a split."""
    return f"{split}.npz"


def load(data: sections.Data, path: str) -> decoding.Labelled:
    """Reads a store into memory, or leaves its images where they are.

    Args:
      data: `dataset`, `image_size`, `crop_pct` and `max_data_gib` are read.
      path: of the folder.

    Raises:
      DataError: it cannot be read, or images are of unequal size without `image_size`.
    """
    store, side = Store.open(data.dataset, path), resizing.whole_side(data)
    train, test = (store.records(split, side) for split in SPLITS)
    images = _left(data, store, train, test) or _decoded(data, train, test)
    splits = [
        decoding.Split(inputs, records.labels)
        for inputs, records in zip(images, (train, test), strict=True)
    ]
    return decoding.Labelled(*splits, tuple(store.manifest["class_names"]))


def _left(
    data: sections.Data, store: Store, train: Records, test: Records
) -> list[RecordImages] | None:
    """The images, of which nothing has to be read before they are needed; or None."""
    counted = [store.counted(split, train.side) for split in SPLITS]
    if counted[0] is None or counted[1] is None:
        return None
    count = len(train) + len(test)
    if image_stores.fits(data, count * int(np.prod(counted[0].shape))):
        return None
    return [
        records.not_held(range(len(records)), seen)
        for records, seen in zip((train, test), counted, strict=True)
    ]


def _decoded(
    data: sections.Data, train: Records, test: Records
) -> Iterator[np.ndarray | decoding.NotHeld]:
    """Decodes all images."""
    others: int | np.ndarray | decoding.NotHeld = len(test)
    for records in (train, test):
        bad: list[str] = []
        others, _ = image_stores.decode(data, records, len(records), others, bad)
        if bad:
            raise errors.DataError(f"Data set '{data.dataset}' is damaged: {bad[0]}")
        yield others


def array_record_modules() -> tuple[types.ModuleType, types.ModuleType]:
    """Returns ArrayRecord's modules that read and write.

    Raises:
      DataError: the package is not installed.
    """
    try:
        from array_record.python import array_record_data_source, array_record_module
    except ImportError as error:
        raise errors.DataError(
            "ArrayRecord is not installed here: pip install array_record."
        ) from error
    return array_record_data_source, array_record_module
