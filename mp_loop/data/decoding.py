"""Decodes a TFDS data set into arrays, in stored order."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow.python.framework import ops

from mp_loop.config import errors
from mp_loop.data import checksums, targets

MAX_DECODED_BYTES = 4 * 2**30
_ALIGNMENT = 64  # bytes: tsl::Allocator::kAllocatorAlignment


class NotHeld(Protocol):
    """Inputs that are not in memory; see `file_images`.

    Attributes:
      shape: of all of them.
      checksum: of the array that they would be, by `checksums.crc32`.
    """

    shape: tuple[int, ...]
    checksum: str

    def row(self, index: tf.Tensor) -> tf.Tensor:
        """Returns one of them."""

    def rows(self, indices: tf.data.Dataset) -> tf.data.Dataset:
        """Returns those of these indices, one by one, in order."""


# How a data set makes elements of others.
PARALLEL = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Decoded examples.

    Attributes:
      inputs: images, uint8 [n, h, w, c], not smaller than those that a model receives;
        tokens, int32 [n, length]; or rows of numbers, float64 [n, columns]. Or images
        that are read as they are needed.
      labels: class numbers, int64 [n]; targets, float64 [n, targets]; 0 and 1, uint8
        [n, classes]; or masks, uint8 [n, h, w], of the size of the images, perhaps
        read as they are needed, with these.
      names: of examples that are files, their paths; else none.
    """

    inputs: np.ndarray | NotHeld
    labels: np.ndarray | NotHeld
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def on_host(self) -> tf.Tensor:
        """The inputs as one tensor in host memory, for all epochs."""
        return in_host_memory(self.inputs)

    @property
    def checksums(self) -> dict[str, str]:
        """What changes if anything of the inputs or of the labels does."""
        away = self.not_held
        inputs = checksums.crc32(self.inputs) if away is None else away.checksum
        away = self.labels_not_held
        labels = checksums.crc32(self.labels) if away is None else away.checksum
        return {"inputs": inputs, "labels": labels}

    @property
    def counts(self) -> None:
        """Every label counts; see `sequences.Sequences`."""
        return None

    @functools.cached_property
    def _labels_on_host(self) -> tf.Tensor:
        return in_host_memory(self.labels)

    def take(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the inputs and the labels of some examples.

        Args:
          index: integers [batch].
        """
        return tf.gather(self.on_host, index), self.take_labels(index)

    def take_labels(self, index: tf.Tensor) -> tf.Tensor:
        """Returns the labels of some examples; see `take`."""
        return tf.gather(self._labels_on_host, index)

    @property
    def not_held(self) -> NotHeld | None:
        """The inputs, if they are not in memory: `take` has none of them."""
        return None if isinstance(self.inputs, np.ndarray) else self.inputs

    @property
    def labels_not_held(self) -> NotHeld | None:
        """The labels, if they are not in memory."""
        return None if isinstance(self.labels, np.ndarray) else self.labels

    def one(self, place: int) -> np.ndarray:
        """Returns the inputs of one example."""
        away = self.not_held
        return self.inputs[place] if away is None else away.row(place).numpy()


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """Both splits of a data set, and the names of its classes.

    Attributes:
      train: the training examples.
      test: those to evaluate on.
      class_names: one name for each class; labels are in [0, their number).
      kind: `image`, `text` or `row`: what the inputs are.
      columns: of a table, the names of those that the inputs are made of.
      targets: what the labels of a regression are, which has no classes; else None.
      mask_values: of a segmentation, the number in masks of each class; else none.
    """

    train: Split
    test: Split
    class_names: tuple[str, ...]
    kind: str = "image"
    columns: tuple[str, ...] = ()
    targets: targets.Targets | None = None
    mask_values: tuple[int, ...] = ()


def in_host_memory(values: np.ndarray) -> tf.Tensor:
    """Makes a tensor that all traced functions can read.

    It shares the memory of an array of numbers that `empty` made, which must not change
    any more.
    """
    # With an explicit device: TensorFlow would put it on a GPU.
    with tf.init_scope(), tf.device("CPU:0"):
        if values.dtype == object:
            return tf.convert_to_tensor(values)
        device = tf.config.list_logical_devices("CPU")[0].name
        dtype = tf.as_dtype(values.dtype).as_datatype_enum
        # What `tf.convert_to_tensor` does after it has copied the array.
        return ops.EagerTensor(np.ascontiguousarray(values), device, dtype)


def empty(shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
    """Makes an array whose memory TensorFlow can use: it begins where vectors may."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def feature_names(
    name: str, info: tfds.core.DatasetInfo, text: bool
) -> tuple[str, str]:
    """Finds the features that are the inputs and the labels.

    Args:
      name: of the data set.
      info: of the data set.
      text: whether the inputs are texts; else images.

    Raises:
      DataError: there is no 8-bit image (or text), or no class label.
    """
    features = info.features
    known = dict(features.items()) if hasattr(features, "items") else {}
    keys = info.supervised_keys
    if not (keys and len(keys) == 2 and all(isinstance(key, str) for key in keys)):
        kind = tfds.features.Text if text else tfds.features.Image
        found = [key for key, value in known.items() if isinstance(value, kind)]
        keys = (found[0] if len(found) == 1 else "text" if text else "image", "label")
    first, label = (known.get(key) for key in keys)
    if text:
        fits = isinstance(first, tfds.features.Text)
    else:
        fits = isinstance(first, tfds.features.Image) and first.np_dtype == np.uint8
    labelled = isinstance(label, tfds.features.ClassLabel) and label.num_classes
    if fits and labelled:
        return keys
    found = {key: type(value).__name__ for key, value in known.items()}
    wanted = "a Text" if text else "an 8-bit Image"
    hint = "; texts need a --model of keras_hub" if "Text" in found.values() else ""
    raise errors.DataError(
        errors.because(
            f"Data set '{name}' must have {wanted} and a ClassLabel",
            f"it has {found or features}{'' if text else hint}",
        )
    )


def unchanged(pixels: np.ndarray) -> np.ndarray:
    """Returns images as they are."""
    return pixels


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Decodes the splits of a data set.

    Attributes:
      name: of the data set.
      builder: of the data set, prepared.
      feature: the name of the inputs.
      label: the name of the labels.
      convert: makes an array of uint8 images, or of int32 tokens, from a batch.
      examples_at_once: the size of that batch.
    """

    name: str
    builder: tfds.core.DatasetBuilder
    feature: str
    label: str
    convert: Callable[[np.ndarray], np.ndarray]
    examples_at_once: int

    def decode(self, split: str, like: Split | None = None) -> Split:
        """Decodes one split, in stored order.

        Args:
          split: its name.
          like: another split, held as well; inputs must have its shape.

        Raises:
          DataError: unreadable files, images of unequal size, more than
            `MAX_DECODED_BYTES`, or labels out of range.
        """
        count = self.builder.info.splits[split].num_examples
        inputs, filled = None, 0
        labels = np.empty(count, np.int64)
        names = (self.feature, self.label)
        at_once = self.examples_at_once
        for batch in stored(self.name, self.builder, split, names, at_once):
            values = self.convert(batch[self.feature])
            if inputs is None:
                held = None if like is None else like.inputs
                inputs = allocate(self.name, count, values, held)
            if values.shape[1:] != inputs.shape[1:]:
                raise unequal(self.name, inputs.shape[1:], values)
            inputs[filled : filled + len(values)] = values
            labels[filled : filled + len(values)] = batch[self.label]
            filled += len(values)
        self._check_labels(split, labels)
        return Split(inputs, labels)

    def _check_labels(self, split: str, labels: np.ndarray) -> None:
        classes = self.builder.info.features[self.label].num_classes
        if labels.min() < 0 or labels.max() >= classes:
            raise errors.DataError(
                f"Data set '{self.name}', split '{split}', has labels from "
                f"{labels.min()} to {labels.max()}; they must be in [0, {classes})."
            )


def allocate(
    name: str, count: int, values: np.ndarray, like: np.ndarray | None
) -> np.ndarray:
    """Returns an empty array for a whole split, if memory allows both splits.

    Args:
      name: of the data set.
      count: examples of the split.
      values: some of them.
      like: the examples of another split, held as well, whose shape is taken; or None.

    Raises:
      DataError: it would be more than `MAX_DECODED_BYTES`.
    """
    shape = values.shape[1:] if like is None else like.shape[1:]
    total = 0 if like is None else like.nbytes
    total += count * int(np.prod(shape)) * values.itemsize
    if total > MAX_DECODED_BYTES:
        raise too_large(name, total)
    return empty((count, *shape), values.dtype)


def unequal(
    name: str, shape: tuple[int, ...], values: np.ndarray, where: str = ""
) -> errors.DataError:
    """Makes the error for images that are not of the shape of those before."""
    found = f"{values.shape[1:]}" + (f" ('{where}')" if where else "")
    return errors.DataError(
        f"Data set '{name}' has images of unequal size: {shape} and "
        f"{found}; --image_size makes them equal."
    )


def too_large(name: str, size: int) -> errors.DataError:
    """Makes the error for a data set that takes more than `MAX_DECODED_BYTES`."""
    return errors.DataError(
        f"Data set '{name}' takes {size / 2**30:.1f} GiB decoded; at most "
        f"{MAX_DECODED_BYTES / 2**30:.3g} GiB fit: it is held in memory. Images in a "
        "folder (folder:PATH) are read as they are needed, and so are those that "
        "`python -m mp_loop.convert` has written."
    )


def stored(
    name: str,
    builder: tfds.core.DatasetBuilder,
    split: str,
    features: Sequence[str],
    at_once: int,
    decoders: Mapping[str, tfds.decode.Decoder] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of some features of a split, in stored order.

    Args:
      name: of the data set, for messages.
      builder: of the data set, prepared.
      split: its name.
      features: their names.
      at_once: examples in a batch.
      decoders: other than the usual, by feature.

    Raises:
      DataError: files cannot be read, or hold another number of examples.
    """
    known = builder.info.features
    try:
        examples = builder.as_dataset(
            split=split,
            shuffle_files=False,
            # One file after the other: this is the stored order. A file that holds
            # another number of examples than declared is an error.
            read_config=tfds.ReadConfig(
                try_autocache=False, interleave_cycle_length=1, assert_cardinality=True
            ),
            decoders=tfds.decode.PartialDecoding(
                {key: known[key] for key in features}, decoders
            ),
        )
        yield from examples.batch(at_once).as_numpy_iterator()
    except (tf.errors.OpError, OSError, AssertionError) as error:
        raise errors.DataError(
            errors.because(f"Data set '{name}', split '{split}', cannot be read", error)
        ) from error


def moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of pixel / 255, float64 [channels]."""
    return moments_of(pixel_counts(images))


def pixel_counts(images: np.ndarray) -> np.ndarray:
    """Counts the pixels of each value, int64 [channels, 256].

    That is exact, in whatever parts the images come, and needs no float copy.
    """
    # Counting makes 8 bytes of each pixel.
    chunks = np.array_split(images, max(1, min(len(images), images.nbytes >> 24)))
    return np.stack(
        [
            sum(np.bincount(chunk[..., c].ravel(), minlength=256) for chunk in chunks)
            for c in range(images.shape[-1])
        ]
    )


def moments_of(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of pixel / 255 from `pixel_counts`."""
    values = np.arange(256, dtype=np.float64) / 255
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ values
    std = np.sqrt(np.sum(weights * (values - mean[:, None]) ** 2, axis=1))
    return mean, np.where(std > 0, std, 1.0)
