"""Predictions in a file, of a row or a line each.

    with prediction_files.replacing(path) as write:
        write(found)

The suffix says the format: `.csv`, or `.jsonl` for a JSON object a line.
"""

from __future__ import annotations

import contextlib
import csv
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mp_loop.rendering import whole_files
from mp_loop.run import prediction, strict_json

if TYPE_CHECKING:  # It imports TensorFlow, which takes seconds.
    from mp_loop.data import raw_examples

SUFFIXES = (".csv", ".jsonl")
COLUMNS = ("class", "probability", "label")


@contextlib.contextmanager
def replacing(
    path: pathlib.Path, name: str = "file", columns: Sequence[str] = COLUMNS
) -> Iterator[Callable[[prediction.Prediction], None]]:
    """Writes a file that is there when all of it is.

    Args:
      path: of the file.
      name: the title of the first column, which names the example.
      columns: the titles of the others; see `columns_of`.

    Yields:
      A function that writes one prediction.

    Raises:
      OSError: the file cannot be written; there is none then.
    """
    names = (name, *columns)
    with (
        whole_files.replacing(path, whole_files.temporary(path)) as temporary,
        # Names of files may be no UTF-8: their bytes are written as they are.
        open(
            temporary, "w", encoding="utf-8", errors="surrogateescape", newline=""
        ) as file,
    ):
        if path.suffix == ".csv":
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(names)
            yield lambda found: rows.writerow(_values(found))
        else:
            yield lambda found: file.write(
                strict_json.to_line(dict(zip(names, _values(found), strict=True)))
            )
        file.flush()
        os.fsync(file.fileno())


def columns_of(wanted: raw_examples.Wanted) -> tuple[str, ...]:
    """Names the columns of predictions and labels; of one number they need no name."""
    if wanted.task == "classification":
        return COLUMNS
    found, names = "prediction", wanted.targets
    if wanted.task == "multilabel":
        found, names = "probability", wanted.class_names
    ends = [f"_{name}" for name in names] if len(names) > 1 else [""]
    return tuple(f"{what}{end}" for what in (found, "label") for end in ends)


def _values(found: prediction.Prediction) -> tuple[Any, ...]:
    example = found.example
    if found.numbers:
        labels = example.label or (None,) * len(found.numbers)
        return example.name, *found.numbers, *labels
    return example.name, found.class_name, round(found.probability, 6), example.label
