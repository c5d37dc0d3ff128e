"""Rows of CSV and JSON Lines files, read one after the other.

for row in table_files.rows("csv", path, choose, bad):
row.place, row.inputs, row.label        # "train.csv, line 7", ("1.5", "a"), "yes"
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from mp_loop.config import errors, json_values


@dataclasses.dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
      place: its file and line.
      inputs: the values of the chosen columns: text, or what JSON has.
      label: the value of the column of labels; None where there is none.
    """

    place: str
    inputs: tuple[json_values.Json, ...]
    label: json_values.Json


# Of the names of all columns: those of the inputs, and that of the labels.
Choose = Callable[[Sequence[str]], tuple[Sequence[str], str]]


def rows(kind: str, path: str, choose: Choose, bad: list[str]) -> Iterator[Row]:
    """Yields the rows of a file.

    Args:
      kind: `csv`: comma-separated, the first row names the columns; `jsonl`: an object
        on each line, the keys of the first name the columns.
      path: of the file, text in UTF-8.
      choose: which columns are wanted.
      bad: gets the place of each row that is no row of this table.

    Raises:
      DataError: the file cannot be read, or what `choose` raises.
    """
    file = pathlib.Path(path)
    read = _csv_rows if kind == "csv" else _json_rows
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream, _long_fields():
            yield from read(file.name, stream, choose, bad)
    except UnicodeDecodeError as error:
        raise errors.DataError(
            errors.because(f"'{path}' must be text in UTF-8", error.reason)
        ) from error
    except (OSError, csv.Error) as error:
        raise errors.DataError(
            errors.because(f"'{path}' cannot be read", error)
        ) from error


def _csv_rows(
    name: str, stream: TextIO, choose: Choose, bad: list[str]
) -> Iterator[Row]:
    reader = csv.reader(stream, strict=True)
    columns = [column.strip() for column in next(reader, [])]
    inputs, label = choose(columns)
    wanted = [columns.index(column) for column in inputs]
    labelled = columns.index(label) if label in columns else None
    line = reader.line_num + 1
    for values in reader:
        # A row may have several lines: it is where it begins.
        place, line = f"{name}, line {line}", reader.line_num + 1
        if not values:
            continue
        if len(values) != len(columns):
            bad.append(f"{place}: {len(values)} values for {len(columns)} columns")
            continue
        given = None if labelled is None else values[labelled]
        yield Row(place, tuple(values[i] for i in wanted), given)


def _json_rows(
    name: str, stream: TextIO, choose: Choose, bad: list[str]
) -> Iterator[Row]:
    inputs = label = None
    for number, line in enumerate(stream, 1):
        place = f"{name}, line {number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if "\\u" in line:  # half of a pair of UTF-16 is no text
                json.dumps(values, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            bad.append(f"{place}: is no JSON object")
            continue
        if label is None:
            inputs, label = choose(list(values))
        yield Row(place, tuple(map(values.get, inputs)), values.get(label))


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Inside, a text may have more than the 131,072 characters of Python's limit."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)
