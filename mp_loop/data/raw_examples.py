"""Examples as they are, one after the other, to predict on.

    for example in raw_examples.read(data, wanted, split="test"):
        example.name, example.inputs, example.label

Images in files and data sets of TFDS are not held: they may be larger than memory. What
cannot be read is an example that says so.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from mp_loop.config import errors, names, sections
from mp_loop.data import (
    array_records,
    decoding,
    download,
    image_files,
    image_folders,
    mask_folders,
    mask_tfds,
    multilabel,
    number_rows,
    resizing,
    sources,
    splitting,
    table_files,
    table_values,
    targets,
)


@dataclasses.dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
      name: its file, as the data set names it, or its place in the split.
      inputs: an image, uint8 [h, w, channels], a text in UTF-8, its tokens, or a row of
        numbers, float64 [columns].
      label: the name of its class; its targets; of several labels 0 or 1 for each
        class; or its mask, integers [h, w]. None if it has none.
      problem: why it cannot be used.
    """

    name: str | int
    inputs: bytes | np.ndarray | None = None
    label: str | tuple[float, ...] | np.ndarray | None = None
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a predictor takes.

    Attributes:
      shape: (h, w, channels) of an image, after it was resized; (length,) of tokens;
        (columns,) of a row of numbers.
      resized_to: the side of the squares that images are resized to; 0: unchanged.
      class_names: the names of the classes.
      tokenizer: makes tokens of texts; None for all else.
      columns: of a table, the names of those that an input is made of.
      targets: of a regression, their names, which are those of columns of a table.
      task: of the run, as of `--task`.
      mask_values: of a segmentation, the numbers of its classes in masks.
    """

    shape: tuple[int, ...]
    resized_to: int
    class_names: tuple[str, ...]
    tokenizer: sources.Tokenizer | None = None
    columns: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    task: str = "classification"
    mask_values: tuple[int, ...] = ()


def read(
    data: sections.Data, wanted: Wanted, split: str, ahead: int = 0
) -> Iterator[Example]:
    """Reads a data set, in stored order.

    Args:
      data: the settings of the run, with the data set to read.
      wanted: what examples must be.
      split: of TFDS, what it takes for one (`test`, `train[:100]`); "" is `test`, or
        `validation`. Of a folder of images `train` or `test`; "" is all images in it
        and in its folders, which need not be those of classes. Of a table `train` or
        `test`; "" is all rows of a file, which need no labels. Of other files `train`
        or `test`, which "" is.
      ahead: how many images are read before they are asked for, at least.

    Returns:
      Its examples. Images are resized as for the training.

    Raises:
      DataError: unknown or missing data set or split, or features that are not wanted;
        while it is read: an image of another shape, or unreadable files of TFDS.
    """
    local = names.local_path(data.dataset)
    if local is None and wanted.task == "segmentation":
        return _checked(data.dataset, _of_tfds_masks(data, wanted, split), wanted)
    if local is None:
        return _of_tfds(data, wanted, split, ahead)
    kind, path = local
    is_table = wanted.columns and kind in ("csv", "jsonl")
    if is_table and not split and not os.path.isdir(path):
        return _of_table(data, path, wanted, kind, ahead)
    if kind not in ("folder", "array_record"):
        return _of_memory(data, wanted, split or "test")
    if len(wanted.shape) != 3:
        raise errors.DataError(
            f"Data set '{data.dataset}' holds images, which the model does not read."
        )
    if kind == "array_record":
        return _of_records(data, path, wanted, split or "test", ahead)
    if wanted.task == "segmentation" and (split or mask_folders.is_one(path)):
        return _of_mask_folder(data, path, wanted, split, ahead)
    return _of_folder(data, path, wanted, split, ahead)


def _of_mask_folder(
    data: sections.Data, folder: str, wanted: Wanted, split: str, ahead: int
) -> Iterator[Example]:
    """The images of a folder that have masks, named by their paths in it."""
    splits = [split] if split else [splitting.TRAIN, splitting.TEST[0]]
    pairs = [x for name in splits for x in mask_folders.of_split(data, folder, name)]
    if not pairs:
        raise errors.DataError(f"Data set '{data.dataset}' has no image with a mask.")

    def read_pair(pair: mask_folders.Pair) -> Example:
        try:
            size = wanted.resized_to
            channels = wanted.shape[-1]
            return Example(pair.image, *mask_folders.read(folder, pair, size, channels))
        except errors.DataError as error:
            return Example(pair.image, problem=str(error))

    examples = image_files.in_parallel(read_pair, pairs, ahead)
    return _checked(data.dataset, examples, wanted)


def _of_tfds_masks(
    data: sections.Data, wanted: Wanted, split: str
) -> Iterator[Example]:
    """The examples of a split of TFDS that has masks, named by their places."""
    name = data.dataset
    builder, split = _prepared(data, split)
    keys = mask_tfds.features(name, builder.info)
    found = mask_tfds.examples(name, builder, split, keys, wanted.resized_to)
    for place, (image, mask) in enumerate(found):
        yield Example(place, image[0], mask[0])


def _of_tfds(
    data: sections.Data, wanted: Wanted, split: str, ahead: int
) -> Iterator[Example]:
    """The examples of a split of TFDS, named by their places."""
    name = data.dataset
    builder, split = _prepared(data, split)
    keys = decoding.feature_names(name, builder.info, text=wanted.tokenizer is not None)
    labels = builder.info.features[keys[1]].names

    def examples() -> Iterator[Example]:
        batches = decoding.stored(name, builder, split, keys, at_once=1)
        resize = functools.partial(_resized, size=wanted.resized_to)
        pairs = ((batch[keys[0]], batch[keys[1]]) for batch in batches)
        made = image_files.in_parallel(resize, pairs, ahead)
        for place, (inputs, label) in enumerate(made):
            known = 0 <= label[0] < len(labels) and wanted.task == "classification"
            yield Example(place, inputs[0], labels[label[0]] if known else None)

    return _checked(name, examples(), wanted)


def _prepared(data: sections.Data, split: str) -> tuple[tfds.core.DatasetBuilder, str]:
    """Finds a data set of TFDS, and the split that is meant, which has examples."""
    name = data.dataset
    builder = download.prepared_builder(name, data.data_dir)
    split = split or ("test" if "test" in builder.info.splits else "validation")
    try:
        count = builder.info.splits[split].num_examples
    except (KeyError, ValueError, TypeError) as error:
        raise errors.DataError(
            f"Data set '{name}' has the splits {sorted(builder.info.splits)}, not "
            f"'{split}'."
        ) from error
    if not count:
        raise errors.DataError(f"Data set '{name}', split '{split}', has no example.")
    return builder, split


def _of_folder(
    data: sections.Data, folder: str, wanted: Wanted, split: str, ahead: int
) -> Iterator[Example]:
    """The images of a folder, named by their paths in it."""
    if split:
        files = image_folders.of_split(data, folder, split)
    else:
        files = [(x, os.path.basename(os.path.dirname(x))) for x in
                 image_files.listed(folder)]  # fmt: skip
    if not files:
        raise errors.DataError(f"Data set '{data.dataset}' has no image.")
    channels = wanted.shape[-1]
    if channels not in (1, 3):
        raise errors.DataError(
            f"Data set '{data.dataset}': images of {channels} channels are in no file."
        )

    def read_file(file: tuple[str, str]) -> Example:
        name, label = file
        of_class = split or label in wanted.class_names
        known = label if of_class and wanted.task == "classification" else None
        try:
            path = os.path.join(folder, name)
            pixels = image_files.decoded(path, channels, wanted.resized_to)
        except errors.DataError as error:
            return Example(name, None, known, str(error))
        return Example(name, pixels, known)

    examples = image_files.in_parallel(read_file, files, ahead)
    return _checked(data.dataset, examples, wanted)


def _of_records(
    data: sections.Data, folder: str, wanted: Wanted, split: str, ahead: int
) -> Iterator[Example]:
    """The images of a store, named as before they were records."""
    splitting.check_name(data.dataset, split)
    store = array_records.Store.open(data.dataset, folder)
    records = store.records(split, wanted.resized_to)
    class_names = store.manifest["class_names"]

    def read_record(index: int) -> Example:
        name = records.place(index)
        classified = wanted.task == "classification"
        label = class_names[records.labels[index]] if classified else None
        try:
            return Example(name, records.decoded(index), label)
        except errors.DataError as error:
            return Example(name, None, label, str(error))

    examples = image_files.in_parallel(read_record, range(len(records)), ahead)
    return _checked(data.dataset, examples, wanted)


def _of_table(
    data: sections.Data, path: str, wanted: Wanted, kind: str, ahead: int
) -> Iterator[Example]:
    """The rows of a file, named by their lines; labels are where there is a column.

    Rows that name an image are named by it.
    """

    def choose(columns: Sequence[str]) -> tuple[Sequence[str], str]:
        missing = [column for column in wanted.columns if column not in columns]
        if missing:
            raise errors.DataError(
                f"Data set '{data.dataset}': there is no column '{missing[0]}', which "
                f"the model reads; there is {', '.join(columns) or 'nothing'}."
            )
        of_labels = _label_columns(data, wanted)
        if not of_labels or {*of_labels} - {*columns}:
            return wanted.columns, data.label_column
        return (*wanted.columns, *of_labels), data.label_column

    examples = _of_rows(kind, path, choose, wanted)
    if len(wanted.shape) != 3:
        return examples
    read_file = functools.partial(_with_image, os.path.dirname(path), wanted)
    found = image_files.in_parallel(read_file, examples, ahead)
    return _checked(data.dataset, found, wanted)


def _of_rows(
    kind: str, path: str, choose: table_files.Choose, wanted: Wanted
) -> Iterator[Example]:
    """The rows of a file, bad ones too."""
    bad: list[str] = []
    rows = table_files.rows(kind, path, choose, bad)
    while (row := next(rows, None)) or bad:
        for said in bad:
            place, _, problem = said.partition(": ")
            yield Example(place, problem=problem)
        bad.clear()
        if row is not None:
            yield _of_row(row, wanted)


def _with_image(folder: str, wanted: Wanted, example: Example) -> Example:
    """Decodes the image that an example names."""
    if example.problem:
        return example
    path = os.path.join(folder, example.name)
    try:
        pixels = image_files.decoded(path, wanted.shape[-1], wanted.resized_to)
    except errors.DataError as error:
        return dataclasses.replace(example, problem=str(error))
    return dataclasses.replace(example, inputs=pixels)


def _label_columns(data: sections.Data, wanted: Wanted) -> tuple[str, ...]:
    """The columns of a table that hold several labels, or targets."""
    named = targets.columns(data.label_column)
    if wanted.task == "multilabel" and len(named) > 1:
        return wanted.class_names
    return named if wanted.task == "multilabel" else wanted.targets


def _of_row(row: table_files.Row, wanted: Wanted) -> Example:
    """Makes a text, numbers, or the name of an image of a row of a table."""
    count = len(wanted.columns)
    inputs, others = row.inputs[:count], row.inputs[count:]
    if wanted.task == "regression":
        label = _finite(map(table_values.number, others))
    elif wanted.task == "multilabel":
        named = multilabel.names(others[0]) if others else None
        if named is None:
            label = _finite(map(multilabel.flag, others))
        else:
            known = not {*named} - {*wanted.class_names}
            label = multilabel.flags_of(named, wanted.class_names) if known else None
    else:
        label = table_values.label_text(row.label, wanted.class_names)
    is_image = len(wanted.shape) == 3
    if is_image or wanted.tokenizer is not None:
        text = "" if inputs[0] is None else str(inputs[0])
        problem = "" if text else f"column '{wanted.columns[0]}': nothing is there"
        if is_image:
            return Example(text or row.place, None, label, problem)
        return Example(row.place, text.encode(errors="replace"), label, problem)
    values = np.array([[table_values.number(value) for value in inputs]])
    bad: list[str] = []
    number_rows.usable(values, lambda _, column: wanted.columns[column], bad)
    problem = f"column '{bad[0]}' holds no finite number of float32" if bad else ""
    return Example(row.place, values[0], label, problem)


def _finite(numbers: Iterable[float]) -> tuple[float, ...] | None:
    """Returns numbers, if there are some and all are finite."""
    found = tuple(numbers)
    return found if found and np.isfinite(found).all() else None


def _of_memory(data: sections.Data, wanted: Wanted, split: str) -> Iterator[Example]:
    """The examples of a split that is read whole, named by files or their places."""
    splitting.check_name(data.dataset, split)
    if wanted.columns:  # a file may have them in another order
        data = dataclasses.replace(data, input_columns=",".join(wanted.columns))
    source = sources.from_settings(data, wanted.tokenizer, wanted.task)
    part = source.train if split == splitting.TRAIN else source.test
    names = part.names or range(len(part))

    def label_of(label: np.ndarray) -> str | tuple[float, ...] | np.ndarray:
        if source.masks is not None:
            return source.masks.numbers(label)
        if wanted.task == "classification":
            return source.class_names[label]
        if wanted.task == "regression":
            return tuple(label.tolist())
        named = itertools.compress(source.class_names, label)
        return multilabel.flags_of(named, wanted.class_names)

    examples = (
        Example(name, part.one(place), label_of(part.labels[place]))
        for place, name in enumerate(names)
    )
    return _checked(data.dataset, examples, wanted)


def _resized(example: tuple, size: int) -> tuple:
    inputs, label = example
    return (resizing.resized(inputs, size) if size else inputs), label


def _checked(
    name: str, examples: Iterator[Example], wanted: Wanted
) -> Iterator[Example]:
    """Refuses an image or a row of another shape."""
    for example in examples:
        inputs = example.inputs
        if isinstance(inputs, np.ndarray) and inputs.shape != wanted.shape:
            raise errors.DataError(
                f"Data set '{name}': {example.name} is {inputs.shape}; the model takes "
                f"{wanted.shape}."
            )
        yield example
