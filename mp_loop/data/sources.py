"""Data sets, read from TFDS or from local files and held in memory.

    source = sources.load("fashion_mnist_mini")
    source = sources.load("folder:photos", image_size=160, validation_fraction=0.2)
    source.train.inputs, source.train.labels       # NumPy arrays
    source = sources.load_texts("text:books/", tokens, length=128)
    source.train.rows                              # sequences of tokens

A data set is decoded once. `batching` makes batches of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import keras
import numpy as np
import tensorflow as tf

from mp_loop.config import errors, fields, names, sections
from mp_loop.data import (
    array_records,
    arrays,
    decoding,
    download,
    image_folders,
    mask_folders,
    mask_tfds,
    masks,
    number_rows,
    resizing,
    sequences,
    splitting,
    tables,
    targets,
    texts,
)
from mp_loop.distributed import nests

Examples = decoding.Split | sequences.Sequences

_TABLES = ("csv", "jsonl")
# What gives arrays, by kind.
_ARRAYS = {"npz": arrays.of_npz, "module": arrays.of_function}


class Tokenizer(Protocol):
    """Makes tokens of texts, and can be kept in files."""

    def __call__(self, texts: Sequence[bytes], /) -> np.ndarray:
        """Returns int32 [n, length] of n texts in UTF-8."""

    def text(self, tokens: np.ndarray) -> str:
        """Returns the text of a row of tokens; "" where it cannot."""

    def save(self, folder: str) -> None:
        """Writes itself into a new folder."""


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A data set in memory.

    Attributes:
      name: the name that was given to `load`.
      train: the training examples.
      test: the examples of the split `test`, or `validation` if there is no `test`.
      num_classes: labels are in [0, num_classes). Of packed texts, the vocabulary; of a
        regression, the number of targets.
      input_shape: of a model's inputs: (h, w, c) for images, which are the middle of
        the held ones; (length,) for texts; (columns,) for rows of numbers.
      class_names: one name for each class; none of packed texts and regressions.
      mean: float64 [c], of pixel / 255 over the training examples; [columns] of rows;
        [0] for texts.
      std: float64, likewise (population); 1 for a constant channel or column.
      preprocess: makes a model's inputs from pixels, float32 [b, h, w, c] in [0, 255],
        from rows, float32 [b, columns], or from tokens; None:
        (pixel / 255 - mean) / std, (row - mean) / std, and tokens as they are.
      kind: `image`, `text` or `row`: what the inputs are.
      resized_to: the side of the squares that images were resized to; 0: unchanged.
      tokenize: made the tokens of labelled texts; None for all else.
      columns: of a table, the names of those that the inputs are made of, in order.
      targets: of a regression, what the labels are; None for all else.
      task: what is learned, as of `--task`.
      masks: of a segmentation, what the labels are; None for all else.
    """

    name: str
    train: Examples
    test: Examples
    num_classes: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    preprocess: Callable[[tf.Tensor], nests.Nest] | None = None
    kind: str = "image"
    resized_to: int = 0
    tokenize: Tokenizer | None = None
    columns: tuple[str, ...] = ()
    targets: targets.Targets | None = None
    task: str = "classification"
    masks: masks.Masks | None = None

    @property
    def is_text(self) -> bool:
        """Whether the inputs are tokens."""
        return self.kind == "text"

    def prepare_labels(self, labels: tf.Tensor | np.ndarray) -> tf.Tensor | np.ndarray:
        """Makes what a loss takes: targets standardized; class numbers as they are.

        0 and 1 of several classes become float32.
        """
        if self.task == "multilabel":
            return keras.ops.cast(labels, "float32")
        return labels if self.targets is None else self.targets.standardized(labels)

    def class_counts(self) -> np.ndarray:
        """Counts the training examples, or pixels, of each class, int64 [classes]."""
        if self.masks is not None:
            return masks.counts(self.train.labels)[: self.num_classes]
        return np.bincount(self.train.labels, minlength=self.num_classes)

    def of_pixels(
        self, labels: tf.Tensor, split: int, may_ignore: bool = False
    ) -> tuple[tf.Tensor, ...]:
        """Makes what a loss takes of masks, where pixels do not count with weights.

        Args:
          labels: uint8 [b, h, w], of the size of the held images or of the inputs.
          split: 0 to train, 1 to evaluate on.
          may_ignore: whether the training ignores pixels that are not held.
        """
        weight = self.masks.weights[split]
        numbers, weights = masks.prepare(self.middle(labels), weight)
        return (numbers, weights) if may_ignore or weight != 1 else (numbers,)

    @property
    def prepare_in_step(self) -> Callable[[tf.Tensor], nests.Nest] | None:
        """What a step does to the inputs of raw batches (see `batching`).

        It is `prepare` for images, which travel as uint8; None for all else, whose
        batches are prepared: rows are float64 before.
        """
        return self.prepare if self.kind == "image" else None

    def prepare(self, inputs: nests.AnyTensor) -> nests.Nest:
        """Makes a model's inputs: float32 of pixels and rows; of tokens: `preprocess`.

        Given a symbolic tensor of Keras, it describes how a model would make them.
        """
        if self.is_text:
            return inputs if self.preprocess is None else self.preprocess(inputs)
        if self.kind == "row":
            if self.preprocess is not None:
                return self.preprocess(keras.ops.cast(inputs, "float32"))
            # float64 until here: float32 would not tell two days apart in seconds.
            return keras.ops.cast((inputs - self.mean) / self.std, "float32")
        pixels = keras.ops.cast(self.middle(inputs), "float32")
        if self.preprocess is not None:
            return self.preprocess(pixels)
        scale, offset = 1 / (255 * self.std), -self.mean / self.std
        return pixels * scale.astype(np.float32) + offset.astype(np.float32)

    def middle(self, images: resizing.Images) -> resizing.Images:
        """Cuts out the middle of images, of the size that a model takes."""
        return resizing.middle(images, self.input_shape[:2])


def load(
    dataset: str,
    data_dir: str = "",
    image_size: int = 0,
    crop_pct: float = 1.0,
    tokenize: Tokenizer | None = None,
    task: str = "classification",
    **settings: fields.Value,
) -> Source:
    """Reads a data set of images (or texts) and labels into memory.

        source = sources.load("folder:photos", image_size=160, skip_bad_examples=True)

    Args:
      dataset: as of `--dataset`: `fashion_mnist_mini` (in the package);
        `folder:PATH`, images in a folder for each class; `npz:PATH`, arrays (see
        `labelled_arrays`); `module:package.module:function`, a function that returns
        them, which is called; `csv:PATH` and `jsonl:PATH`, tables (see `tables`); or
        what `tfds.load` takes: `cifar10`, `cifar10:3.0.2`, or the name of a folder in
        `data_dir` that TFDS can read without builder code. TFDS downloads a data set
        that is not there.
      data_dir: TFDS's folder; "" is TFDS's default.
      image_size: the largest square in the middle of each image is resized so that its
        own middle, `crop_pct` of its side, has this side; 0: images are unchanged.
      crop_pct: in (0, 1]. Models receive that middle, as is usual for ImageNet (0.875),
        or a random part of the whole square (`flip_crop`).
      tokenize: makes tokens, int32 [n, length], from n texts in UTF-8; None: the data
        set must hold images, or rows of numbers.
      task: `classification`; `regression`: labels are then numbers, of a table, an
        array or a function; `multilabel`: they say of each class whether it is right;
        or `segmentation`: they are the classes of an image's pixels.
      **settings: others of `sections.Data`, by the names of their flags.

    Returns:
      All examples of both splits, in stored order.

    Raises:
      DataError: unknown or missing data set, unreadable files, features other than an
        8-bit image (or a text) and a class label, images of unequal size without
        `image_size`, or more than `MAX_DECODED_BYTES`.
      ValueError: a setting is out of range.
    """
    data = sections.Data(
        dataset=dataset,
        data_dir=data_dir,
        image_size=image_size,
        crop_pct=crop_pct,
        **settings,
    )
    return from_settings(data, tokenize, task)


def from_settings(
    data: sections.Data,
    tokenize: Tokenizer | None = None,
    task: str = "classification",
) -> Source:
    """Loads the data set that settings describe; see `load`."""
    found = _labelled(data, tokenize, task)
    shape = found.train.inputs.shape[1:]
    mean = std = np.empty(0)
    resized_to = 0
    if found.kind == "row":
        mean, std = number_rows.moments(found.train.inputs)
    if found.kind == "image":
        images = found.train.inputs
        held = isinstance(images, np.ndarray)
        counts = decoding.pixel_counts(images) if held else images.pixel_counts
        mean, std = decoding.moments_of(counts)
        resized_to = resizing.whole_side(data)
    if resized_to:
        shape = (data.image_size, data.image_size, shape[-1])
    source = Source(
        name=data.dataset,
        train=found.train,
        test=found.test,
        num_classes=len(found.targets.names if found.targets else found.class_names),
        input_shape=shape,
        class_names=found.class_names,
        mean=mean,
        std=std,
        kind=found.kind,
        resized_to=resized_to,
        tokenize=tokenize,
        columns=found.columns,
        targets=found.targets,
        task=task,
    )
    if not found.mask_values:
        return source
    # Of the middle, which is what counts.
    splits = (found.train, found.test)
    counts = (masks.counts(split.labels, source.middle) for split in splits)
    weights = tuple(map(masks.weight, counts))
    return dataclasses.replace(source, masks=masks.Masks(found.mask_values, weights))


def _labelled(
    data: sections.Data, tokenize: Tokenizer | None, task: str
) -> decoding.Labelled:
    """Reads the splits; see `load`."""
    kind, path = names.local_path(data.dataset) or ("", "")
    if kind == "text":
        raise errors.DataError(
            f"Data set '{data.dataset}' is text without labels: it is for "
            "--task=causal_lm."
        )
    names.require_labels(data.dataset, task)
    if kind in _TABLES:
        return tables.load(data, kind, path, tokenize, task)
    if kind in _ARRAYS:
        return _ARRAYS[kind](data, path, tokenize, task)
    if not kind and task == "segmentation":
        return mask_tfds.load(data)
    if not kind:
        return _of_tfds(data, tokenize)
    if tokenize is not None:
        raise errors.DataError(
            f"Data set '{data.dataset}' holds images, and the model reads texts."
        )
    if kind == "array_record":
        return array_records.load(data, path)
    of_folder = mask_folders if task == "segmentation" else image_folders
    return of_folder.load(data, path)


def _of_tfds(data: sections.Data, tokenize: Tokenizer | None) -> decoding.Labelled:
    """Decodes a TFDS data set; see `load`."""
    name, is_text = data.dataset, tokenize is not None
    builder = download.prepared_builder(name, data.data_dir)
    info = builder.info
    feature, label = decoding.feature_names(name, info, text=is_text)
    test_split = splitting.of_tfds(name, info.splits)
    if is_text:
        convert, at_once = tokenize, 1024
    elif data.image_size:
        side = resizing.whole_side(data)
        convert, at_once = functools.partial(resizing.resized, size=side), 1
    else:
        # Images whose size is not declared are compared one by one.
        declared = None not in info.features[feature].shape
        convert, at_once = decoding.unchanged, 256 if declared else 1
    decoder = decoding.Decoder(name, builder, feature, label, convert, at_once)
    train = decoder.decode("train")
    test = decoder.decode(test_split, like=train)
    kind = "text" if is_text else "image"
    return decoding.Labelled(train, test, tuple(info.features[label].names), kind)


def load_texts(
    name: str,
    tokens: sequences.Tokens,
    length: int,
    data_dir: str = "",
    held_out: float = 0.1,
) -> Source:
    """Reads texts, and packs them into sequences of tokens.

    Args:
      name: `text:PATH`, a file, or a folder of .txt files; or as for `load`, a data set
        that has texts, whatever else it has.
      tokens: what makes ids of texts.
      length: tokens of a sequence.
      data_dir: as for `load`.
      held_out: share of the sequences, the last ones, that is for evaluation where
        there is no split for it.

    Raises:
      DataError: unknown or missing data set, unreadable files, no text, or too little
        for two sequences.
    """
    local = names.local_path(name)
    if local is not None:
        train, test = texts.of_file(name, local[1]), None
    else:
        train, test = _texts_of_tfds(name, data_dir)
    packed = sequences.pack(name, train, tokens, length)
    if test is not None:
        packed_test = sequences.pack(name, test, tokens, length)
    elif len(packed) > 1:
        packed, packed_test = packed.split(held_out)
    else:
        raise errors.DataError(
            f"Data set '{name}' has {packed.tokens} tokens: too few for a sequence of "
            f"{length} to train on and one to evaluate on; --sequence_length can be "
            "smaller."
        )
    return Source(
        name=name,
        train=packed,
        test=packed_test,
        num_classes=tokens.vocabulary_size,
        input_shape=(length,),
        class_names=(),
        mean=np.empty(0),
        std=np.empty(0),
        kind="text",
        task="causal_lm",
    )


def _texts_of_tfds(
    name: str, data_dir: str
) -> tuple[Iterable[str], Iterable[str] | None]:
    """The texts of the splits to train and to evaluate on, None if there is none."""
    builder = download.prepared_builder(name, data_dir)
    key = texts.feature(name, builder.info)
    splits = builder.info.splits
    if "train" not in splits or not splits["train"].num_examples:
        raise errors.DataError(
            f"Data set '{name}' has the splits {sorted(splits)}; 'train', with "
            "examples, is needed."
        )
    found = [x for x in ("test", "validation") if x in splits]
    found = [x for x in found if splits[x].num_examples]
    test = texts.of_split(name, builder, key, found[0]) if found else None
    return texts.of_split(name, builder, key, "train"), test
