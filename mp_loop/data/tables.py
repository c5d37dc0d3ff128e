"""Tables of labelled texts or numbers: CSV and JSON Lines files.

    PATH               a file, some rows of which are held out; or a folder with
    PATH/train.csv     and PATH/test.csv (or validation.csv, val.csv, valid.csv)

Columns of numbers become rows, float64 [n, columns]; one column of texts becomes
tokens, where the model reads tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mp_loop.config import errors, sections
from mp_loop.data import (
    classes,
    decoding,
    number_rows,
    regression,
    splitting,
    table_files,
    targets,
)

_AT_ONCE = 1024
_INTEGER = re.compile(r"[+-]?\d{1,18}")

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
        columns hold the targets, comma-separated.

    Raises:
      DataError: a file or a column is missing, a value cannot be used, or see
        `classes.assemble`.
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
    if task == "regression":
        found = regression.assemble(data, parts, reader.bad, hint, read)
    else:
        parts = _with_integers(*parts)
        found = classes.assemble(data, parts, reader.bad, hint, kind=read)
    return dataclasses.replace(found, columns=reader.columns)


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
    """

    def __init__(
        self, data: sections.Data, kind: str, tokenize: Tokenize | None, task: str
    ) -> None:
        self.bad: list[str] = []
        self._data, self._kind, self._tokenize = data, kind, tokenize
        self._targets: tuple[str, ...] = ()
        if task == "regression":
            self._targets = targets.columns(data.label_column)
        self._columns: tuple[Sequence[str], str] | None = None
        self._size = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the inputs, once a file was read."""
        return tuple(self._columns[0])

    def read(self, file: str) -> tuple[classes.Part, np.ndarray]:
        """Returns all rows of a file, and which would be held out, bool [n].

        Labels are as they stand, str [n], or targets, float64 [n, targets].
        """
        inputs: list[np.ndarray] = []
        labels: list[Any] = []
        held_out: list[bool] = []
        for rows in self._rows(file):
            if self._targets:
                rows = self._with_targets(rows)
            if not rows:
                continue
            if self._tokenize is None:
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
            labels += [
                row.label if self._targets else _label(row.label) for row in rows
            ]
            fraction = self._data.validation_fraction
            names = ("\x1f".join(map(str, row.inputs)) for row in rows)
            held_out += [splitting.is_held_out(name, fraction) for name in names]
        values = np.concatenate(inputs) if inputs else np.zeros((0, 1))
        if self._targets:
            known = np.array(labels, np.float64).reshape(-1, len(self._targets))
        else:
            known = np.array(labels, str)
        return classes.Part(values, known), np.array(held_out, bool)

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
        labels = self._targets or (self._data.label_column,)
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
        return (*inputs, *self._targets), labels[0]

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
            if isinstance(value, dict | list):
                self.bad.append(f"{row.place}, column '{column}': is no single value")
                return False
        return True

    def _numbers(
        self, rows: list[table_files.Row], first: bool
    ) -> tuple[list[table_files.Row], np.ndarray]:
        """Returns the rows whose values are numbers, and these, float64 [n, columns].

        Raises:
          DataError: a column has no number at all, among the first rows.
        """
        columns = self.columns
        values = np.array([[number(x) for x in row.inputs] for row in rows])
        texts = np.isnan(values).all(axis=0)
        if first and texts.any():
            column = int(np.argmax(texts))
            raise errors.DataError(
                f"Data set '{self._data.dataset}': column '{columns[column]}' holds no "
                "number, but "
                f"{_told(rows[0].inputs[column])} ({rows[0].place}): texts need a "
                "--model of keras_hub, and --input_columns chooses columns."
            )

        kept = self._usable(values, rows, columns)
        return list(itertools.compress(rows, kept)), values[kept]

    def _with_targets(self, rows: list[table_files.Row]) -> list[table_files.Row]:
        """Returns the rows whose targets are numbers, which become their labels."""
        count = len(self._targets)
        given = [dataclasses.replace(row, inputs=row.inputs[-count:]) for row in rows]
        values = np.array([[number(x) for x in row.inputs] for row in given])
        kept = self._usable(values, given, self._targets)
        pairs = itertools.compress(zip(rows, values, strict=True), kept)
        return [
            dataclasses.replace(row, inputs=row.inputs[:-count], label=numbers)
            for row, numbers in pairs
        ]

    def _usable(
        self,
        values: np.ndarray,
        rows: list[table_files.Row],
        columns: Sequence[str],
    ) -> np.ndarray:
        """Tells which rows hold finite numbers only, bool [n]; notes the others."""

        def told(row: int, column: int) -> str:
            value = _told(rows[row].inputs[column])
            why = "is no finite number of float32" if value != "nothing" else "is there"
            return f"{rows[row].place}, column '{columns[column]}': {value} {why}"

        return number_rows.usable(values, told, self.bad)


def number(value: Any) -> float:
    """Returns a value as a number; NaN if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def label_text(value: Any, class_names: Sequence[str]) -> str | None:
    """Returns a label as the name of its class, as `load` has it; None if it is none.

    Args:
      value: what stands in the table.
      class_names: the names that there are.
    """
    if value is None or value == "":
        return None
    text = _label(value)
    if text not in class_names and _INTEGER.fullmatch(text):
        return str(int(text))
    return text


def _label(value: Any) -> str:
    """Returns a label as text: true and false as JSON writes them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _told(value: Any) -> str:
    """Returns a value for a message."""
    if value is None or value == "":
        return "nothing"
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."


def _with_integers(*parts: classes.Part) -> tuple[classes.Part, ...]:
    """Makes integers of the labels if all of them are, so that 10 follows 9."""
    labels = [part.labels for part in parts]
    known = np.unique(np.concatenate(labels))
    if not all(_INTEGER.fullmatch(label) for label in known):
        return parts
    return tuple(
        classes.Part(part.inputs, part.labels.astype(np.int64)) for part in parts
    )
