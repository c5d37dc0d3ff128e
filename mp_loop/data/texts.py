"""Texts without labels: the text feature of a TFDS data set, or local files.

for text in texts.of_file("books/"): ...
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from mp_loop.config import errors
from mp_loop.data import decoding

SUFFIX = ".txt"


def of_file(name: str, path: str) -> Iterator[str]:
    """Yields the text of a file, or of every .txt file in a folder, by its path.

    Args:
      name: of the data set, for messages.
      path: a file of any name, or a folder, whose folders are searched as well.

    Raises:
      DataError: there is no file, it cannot be read, or it is not UTF-8.
    """
    place = pathlib.Path(path)
    files = [place]
    if place.is_dir():
        files = sorted(x for x in place.rglob(f"*{SUFFIX}") if x.is_file())
    if not files:
        raise errors.DataError(
            f"Data set '{name}': the folder '{path}' holds no {SUFFIX} file."
        )
    for file in files:
        try:
            text = file.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise errors.DataError(
                f"Data set '{name}': '{file}' must be text in UTF-8; byte "
                f"{error.start} is not."
            ) from error
        except OSError as error:
            raise errors.DataError(
                errors.because(f"Data set '{name}': '{file}' cannot be read", error)
            ) from error
        yield text


def feature(name: str, info: tfds.core.DatasetInfo) -> str:
    """Finds the feature of a TFDS data set that is the text.

    Raises:
      DataError: there is none, or several and none of them is the input or `text`.
    """
    known = dict(info.features.items()) if hasattr(info.features, "items") else {}
    found = [key for key, x in known.items() if isinstance(x, tfds.features.Text)]
    for key in (*(info.supervised_keys or ())[:1], "text"):
        if key in found:
            return key
    if len(found) == 1:
        return found[0]
    kinds = {key: type(value).__name__ for key, value in known.items()}
    wanted = "one Text, or one named text" if found else "a Text"
    raise errors.DataError(
        errors.because(
            f"Data set '{name}' must have {wanted}", f"it has {kinds or info.features}"
        )
    )


def of_split(
    name: str, builder: tfds.core.DatasetBuilder, key: str, split: str
) -> Iterator[str]:
    """Yields the texts of a split of a TFDS data set, in stored order.

    Args:
      name: of the data set, for messages.
      builder: of the data set, prepared.
      key: of the feature.
      split: its name.

    Raises:
      DataError: files cannot be read.
    """
    for batch in decoding.stored(name, builder, split, (key,), 1024):
        for text in batch[key]:
            yield text.decode(errors="replace")
