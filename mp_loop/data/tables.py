"""Tables of labelled texts, numbers or images: CSV and JSON Lines files.

    PATH               a file, some rows of which are held out; or a folder with
    PATH/train.csv     and PATH/test.csv (or validation.csv, val.csv, valid.csv)

Columns of numbers become rows, float64 [n, columns]; one column of texts becomes
tokens, where the model reads tokens, and one of names of image files, which are
relative to the table's folder, becomes images.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mp_loop.config import errors, sections
from mp_loop.data import (
    classes,
    decoding,
    image_files,
    image_stores,
    multilabel,
    number_rows,
    regression,
    resizing,
    splitting,
    table_files,
    table_values,
    targets,
)

_AT_ONCE = 1024
_NO_NUMBER = "is no finite number of float32"

Tokenize = Callable[[Sequence[bytes]], np.ndarray]


def load(
    data: sections.Data,
    kind: str,
    path: str,
    tokenize: Tokenize | None,
    task: str = "classification",
) -> decoding.Labelled:
    """Reads a table.

    A row is held out by a hash of the values of its inputs, so that equal rows stay
    together.

    Args:
      data: `dataset`, `input_columns`, `label_column`, `validation_fraction` and
        `skip_bad_examples` are read.
      kind: `csv` or `jsonl`.
      path: of a file or a folder.
      tokenize: makes tokens, int32 [n, length], from n texts in UTF-8; None: the
        inputs are numbers.
      task: `classification`: `label_column` holds the class; `regression`: these
        columns hold the targets, comma-separated; `multilabel`: they hold 0 or 1 for
        the classes that they name, or one of them, of JSON, lists of names.

    Raises:
      DataError: a file or a column is missing, a value cannot be used, or see
        `classes.assemble` and `multilabel.assemble`.
    """
    train_file, test_file = _files(data.dataset, kind, path)
    reader = _Reader(data, kind, tokenize, task)
    train, held_out = reader.read(train_file)
    if test_file is None:
        parts = train.where(~held_out), train.where(held_out)
    else:
        parts = train, reader.read(test_file)[0]
    hint = f"PATH/train.{kind} and PATH/test.{kind} hold the rows"
    read = "row" if tokenize is None else "text"
    if reader.names_images:
        parts = _decoded(data, os.path.dirname(train_file), *parts, reader.bad)
        read = "image"
    if task == "regression":
        found = regression.assemble(data, parts, reader.bad, hint, read)
    elif task == "multilabel":
        found = multilabel.assemble(
            data, parts, reader.bad, hint, reader.class_names, read
        )
    else:
        parts = table_values.with_integers(*parts)
        found = classes.assemble(data, parts, reader.bad, hint, kind=read)
    return dataclasses.replace(found, columns=reader.columns)


def _decoded(
    data: sections.Data,
    folder: str,
    train: classes.Part,
    test: classes.Part,
    bad: list[str],
) -> tuple[classes.Part, classes.Part]:
    """Decodes the images that rows name; those that cannot be read are left out."""
    side = resizing.whole_side(data)

    def of(
        part: classes.Part, others: int | np.ndarray | decoding.NotHeld
    ) -> classes.Part:
        files, places = map(tuple, part.inputs.T)
        encoded = image_stores.Files(folder, files, side, places)
        images, kept = image_stores.decode(data, encoded, len(files), others, bad)
        names = tuple(files[i] for i in kept)
        return classes.Part(images, part.labels[kept], names)

    train = of(train, len(test.labels))
    return train, of(test, train.inputs)


def _files(name: str, kind: str, path: str) -> tuple[str, str | None]:
    """The file to train on, and that to evaluate on if there is one."""
    if not os.path.isdir(path):
        return path, None
    splits = (splitting.TRAIN, *splitting.TEST)
    found = [os.path.join(path, f"{split}.{kind}") for split in splits]
    train, *others = found
    if not os.path.isfile(train):
        raise errors.DataError(
            f"Data set '{name}': the folder '{path}' must hold train.{kind}, and may "
            f"hold test.{kind}."
        )
    return train, next(filter(os.path.isfile, others), None)


class _Reader:
    """Reads the files of a table: the columns of the first are those of all.

    Attributes:
      bad: what was left out.
      names_images: whether rows name image files, once one was read.
    """

    def __init__(
        self, data: sections.Data, kind: str, tokenize: Tokenize | None, task: str
    ) -> None:
        self.bad: list[str] = []
        self._data, self._kind, self._tokenize = data, kind, tokenize
        self._task = task
        self._labels: tuple[str, ...] = (data.label_column,)
        if task != "classification":
            self._labels = targets.columns(data.label_column)
        # Whether labels are lists of names; None: as the first row says.
        one = task == "multilabel" and len(self._labels) == 1
        self._has_lists: bool | None = None if one else False
        self._columns: tuple[Sequence[str], str] | None = None
        self._size = 0
        # None: as the first row says.
        self.names_images: bool | None = None if tokenize is None else False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the inputs, once a file was read."""
        return tuple(self._columns[0])

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes that columns are named by; None if lists name them."""
        return None if self._has_lists else self._labels

    def read(self, file: str) -> tuple[classes.Part, np.ndarray]:
        """Returns all rows of a file, and which would be held out, bool [n].

        Labels are as they stand, str [n]; targets, or 0 and 1, float64 [n, columns]; or
        tuples of names, [n]. Of images inputs are, str [n, 2], their files and where
        these were named.
        """
        inputs: list[np.ndarray] = []
        labels: list[object] = []
        held_out: list[bool] = []
        for rows in self._rows(file):
            if self._task != "classification":
                rows = self._with_labels(rows)
            if not rows:
                continue
            if self.names_images is None:
                self.names_images = _name_images(rows)
            if self.names_images:
                rows, values = self._files(rows)
            elif self._tokenize is None:
                rows, values = self._numbers(rows, first=not inputs)
            else:
                texts = [str(row.inputs[0]) for row in rows]
                values = self._tokenize(
                    [text.encode(errors="replace") for text in texts]
                )
            inputs.append(values)
            self._size += values.nbytes
            if self._size > decoding.MAX_DECODED_BYTES:
                raise decoding.too_large(self._data.dataset, self._size)
            labels += [row.label for row in rows]
            fraction = self._data.validation_fraction
            names = ("\x1f".join(map(str, row.inputs)) for row in rows)
            held_out += [splitting.is_held_out(name, fraction) for name in names]
        nothing = np.zeros((0, 2 if self.names_images else 1))
        values = np.concatenate(inputs) if inputs else nothing
        return classes.Part(values, self._array(labels)), np.array(held_out, bool)

    def _array(self, labels: list[object]) -> np.ndarray:
        """Makes an array of the labels of all rows; see `read`."""
        if self._task == "classification":
            return np.array(list(map(table_values.label, labels)), str)
        if self._has_lists:
            return np.fromiter(labels, object, len(labels))
        return np.array(labels, np.float64).reshape(-1, len(self._labels))

    def _rows(self, file: str) -> Iterator[list[table_files.Row]]:
        """Yields the rows that have a label, and, of texts, a text; some at a time."""
        try:
            rows = table_files.rows(self._kind, file, self._choose, self.bad)
            rows = filter(self._is_complete, rows)
            while some := list(itertools.islice(rows, _AT_ONCE)):
                yield some
        except errors.DataError as error:
            raise errors.DataError(
                f"Data set '{self._data.dataset}': {error}"
            ) from error

    def _choose(self, columns: Sequence[str]) -> tuple[Sequence[str], str]:
        """Finds the columns of the inputs and that of the labels."""
        labels = self._labels
        told = ", ".join(columns) or "nothing"
        if self._columns is None:
            given = self._data.input_columns
            inputs = [column.strip() for column in given.split(",")] if given else []
            inputs = inputs or [column for column in columns if column not in labels]
            self._columns = inputs, labels[0]
        inputs, _ = self._columns
        for flag, wanted in (("label_column", labels), ("input_columns", inputs)):
            missing = [column for column in wanted if column not in columns]
            if missing:
                raise errors.DataError(
                    f"there is no column '{missing[0]}' (--{flag}); there is {told}."
                )
        if {*labels} & {*inputs} or not inputs or len({*columns}) < len(columns):
            raise errors.DataError(
                f"the columns {told} must have different names, and one beside that "
                f"of the labels, '{', '.join(labels)}', must be chosen "
                "(--input_columns)."
            )
        if self._tokenize is not None and len(inputs) > 1:
            raise errors.DataError(
                f"the model reads one text, and there is {', '.join(inputs)}: "
                "--input_columns chooses a column."
            )
        others = () if self._task == "classification" else labels
        return (*inputs, *others), labels[0]

    def _is_complete(self, row: table_files.Row) -> bool:
        """Tells whether a row has a label and a text; notes what is missing."""
        inputs, label = self._columns
        values = {label: row.label}
        if self._tokenize is not None:
            values[inputs[0]] = row.inputs[0]
        for column, value in values.items():
            if value is None or value == "":
                self.bad.append(f"{row.place}, column '{column}': nothing is there")
                return False
            if isinstance(value, dict | list) and not (
                self._task == "multilabel" and column == label
            ):
                self.bad.append(f"{row.place}, column '{column}': is no single value")
                return False
        return True

    def _files(
        self, rows: list[table_files.Row]
    ) -> tuple[list[table_files.Row], np.ndarray]:
        """Returns the rows that name a file, and its name and their places, [n, 2]."""
        kept = []
        for row in rows:
            name = row.inputs[0]
            if isinstance(name, str) and name:
                kept.append(row)
                continue
            said = "names no file" if name else "is there"
            place = f"{row.place}, column '{self.columns[0]}'"
            self.bad.append(f"{place}: {table_values.told(name)} {said}")
        values = [(row.inputs[0], row.place) for row in kept]
        return kept, np.array(values, object).reshape(-1, 2)

    def _numbers(
        self, rows: list[table_files.Row], first: bool
    ) -> tuple[list[table_files.Row], np.ndarray]:
        """Returns the rows whose values are numbers, and these, float64 [n, columns].

        Raises:
          DataError: a column has no number at all, among the first rows.
        """
        columns = self.columns
        values = np.array(
            [[table_values.number(x) for x in row.inputs] for row in rows]
        )
        texts = np.isnan(values).all(axis=0)
        if first and texts.any():
            column = int(np.argmax(texts))
            value = table_values.told(rows[0].inputs[column])
            raise errors.DataError(
                f"Data set '{self._data.dataset}': column '{columns[column]}' holds no "
                f"number, but {value} ({rows[0].place}): texts need a --model of "
                "keras_hub, images are named in a column of their own, and "
                "--input_columns chooses columns."
            )

        kept = self._usable(values, rows, columns)
        return list(itertools.compress(rows, kept)), values[kept]

    def _with_labels(self, rows: list[table_files.Row]) -> list[table_files.Row]:
        """Returns the rows whose last columns can be used, which become their labels.

        The first row of all says whether one column holds lists of names.
        """
        count = len(self._labels)
        given = [dataclasses.replace(row, inputs=row.inputs[-count:]) for row in rows]
        if self._has_lists is None and given:
            self._has_lists = isinstance(given[0].inputs[0], list)
        if self._has_lists:
            found = [self._names(row) for row in given]
            kept = np.array([names is not None for names in found], bool)
        else:
            several = self._task == "multilabel"
            read = multilabel.flag if several else table_values.number
            found = np.array([[read(x) for x in row.inputs] for row in given])
            why = "is neither 0 nor 1" if several else _NO_NUMBER
            kept = self._usable(found, given, self._labels, why)
        pairs = itertools.compress(zip(rows, found, strict=True), kept)
        return [
            dataclasses.replace(row, inputs=row.inputs[:-count], label=label)
            for row, label in pairs
        ]

    def _names(self, row: table_files.Row) -> tuple[str, ...] | None:
        """Returns the names in the last column; None, and a note, if there are none."""
        found = multilabel.names(row.inputs[0])
        if found is None:
            value = table_values.told(row.inputs[0])
            self.bad.append(
                f"{row.place}, column '{self._labels[0]}': {value} is no list of names"
            )
        return found

    def _usable(
        self,
        values: np.ndarray,
        rows: list[table_files.Row],
        columns: Sequence[str],
        why: str = _NO_NUMBER,
    ) -> np.ndarray:
        """Tells which rows hold finite numbers only, bool [n]; notes the others."""

        def told(row: int, column: int) -> str:
            value = table_values.told(rows[row].inputs[column])
            said = why if value != "nothing" else "is there"
            return f"{rows[row].place}, column '{columns[column]}': {value} {said}"

        return number_rows.usable(values, told, self.bad)


def _name_images(rows: list[table_files.Row]) -> bool:
    """Tells whether rows name image files: whether the first does that has a value."""
    names = (row.inputs[0] for row in rows if row.inputs[0] not in (None, ""))
    name = next(names, None)
    is_one = len(rows[0].inputs) == 1 and isinstance(name, str)
    return is_one and image_files.is_image(name)
