"""Predictions in a file, of a row or a line each.

    with prediction_files.replacing(path, wanted) as write:
        write(found)

The suffix says the format: `.csv`, or `.jsonl` for a JSON object a line. Masks are
files of their own, in a folder beside it.
"""

from __future__ import annotations

import contextlib
import csv
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mp_loop.rendering import whole_files
from mp_loop.run import files, prediction, prediction_scores, strict_json

if TYPE_CHECKING:  # It imports TensorFlow, which takes seconds.
    from mp_loop.data import raw_examples

SUFFIXES = (".csv", ".jsonl")
COLUMNS = ("class", "probability", "label")


@contextlib.contextmanager
def replacing(
    path: pathlib.Path, wanted: raw_examples.Wanted, name: str = "file"
) -> Iterator[Callable[[prediction.Prediction], None]]:
    """Writes a file that is there when all of it is.

    Args:
      path: of the file.
      wanted: what the run's examples are.
      name: the title of the first column, which names the example.

    Yields:
      A function that writes one prediction.

    Raises:
      OSError: the file cannot be written; there is none then.
    """
    names = (name, *_columns(wanted))
    with (
        whole_files.replacing(path, whole_files.temporary(path)) as temporary,
        # Names of files may be no UTF-8: their bytes are written as they are.
        open(
            temporary, "w", encoding="utf-8", errors="surrogateescape", newline=""
        ) as file,
        _masks(path, wanted) as masks,  # in place before the file that names them
    ):
        if path.suffix == ".csv":
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(names)
            yield lambda found: rows.writerow(_values(found, masks))
        else:
            yield lambda found: file.write(
                strict_json.to_line(
                    dict(zip(names, _values(found, masks), strict=True))
                )
            )
        file.flush()
        os.fsync(file.fileno())


def masks_folder(path: pathlib.Path) -> pathlib.Path:
    """The folder of the masks of a file of predictions."""
    return path.with_name(f"{path.stem}_masks")


def _columns(wanted: raw_examples.Wanted) -> tuple[str, ...]:
    """Names the columns of predictions and labels; of one number they need no name."""
    if wanted.task == "classification":
        return COLUMNS
    if wanted.task == "segmentation":
        return "mask", "accuracy"
    found, names = "prediction", wanted.targets
    if wanted.task == "multilabel":
        found, names = "probability", wanted.class_names
    ends = [f"_{name}" for name in names] if len(names) > 1 else [""]
    return tuple(f"{what}{end}" for what in (found, "label") for end in ends)


def _values(found: prediction.Prediction, masks: _Masks | None) -> tuple[object, ...]:
    example = found.example
    if masks is not None:
        return example.name, masks.write(found), masks.accuracy(found)
    if found.numbers:
        labels = example.label or (None,) * len(found.numbers)
        return example.name, *found.numbers, *labels
    return example.name, found.class_name, round(found.probability, 6), example.label


@contextlib.contextmanager
def _masks(path: pathlib.Path, wanted: raw_examples.Wanted) -> Iterator[_Masks | None]:
    """Makes the folder of masks of a segmentation, which is there when all of it is."""
    if wanted.task != "segmentation":
        yield None
        return
    folder = masks_folder(path)
    with whole_files.replacing(folder, whole_files.temporary(folder)) as temporary:
        temporary.mkdir()
        yield _Masks(temporary, folder.name, wanted)
        files.flush_tree(temporary)
        if folder.is_dir():
            whole_files.remove(folder)  # a folder takes the place of none


class _Masks:
    """Writes masks into a folder, by the names of their examples."""

    def __init__(
        self, folder: pathlib.Path, name: str, wanted: raw_examples.Wanted
    ) -> None:
        self._folder, self._name, self._wanted = folder, name, wanted
        self._written: set[str] = set()

    def write(self, found: prediction.Prediction) -> str:
        """Writes a mask; returns its path as it will be beside the file."""
        from mp_loop.data import mask_files

        name = str(found.example.name)
        place = f"{os.path.splitext(name)[0]}.png"
        if place in self._written:  # 1.jpg and 1.png
            place = f"{name}.png"
        self._written.add(place)
        path = self._folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mask_files.encoded(found.mask))
        return f"{self._name}/{place}"

    def accuracy(self, found: prediction.Prediction) -> float | None:
        """The share of pixels that are right, if there is a mask to compare with."""
        if found.example.label is None:
            return None
        counts = prediction_scores.pixels(found, self._wanted)
        right, all_ = int(counts.trace()), int(counts.sum())
        return round(right / all_, 6) if all_ else None
