"""Arrays of images and labels, from a file or from a user's function.

x_train           uint8 [n, h, w] or [n, h, w, c]
y_train           integers or strings, [n] or [n, 1]
x_test, y_test    likewise; without them, some are held out
class_names       optional: strings, of the labels 0, 1, ...
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from mp_loop.config import errors, sections
from mp_loop.data import classes, decoding, splitting

_NAMES = ("x_train", "y_train", "x_test", "y_test", "class_names")
_AT_ONCE = 256
_HINT = "x_test and y_test hold some"


def of_npz(data: sections.Data, path: str) -> decoding.Labelled:
    """Reads arrays from a file of NumPy's `savez` or `savez_compressed`.

    Args:
      data: see `labelled`.
      path: of the file.

    Raises:
      DataError: the file cannot be read, or see `labelled`.
    """
    try:
        with open(path, "rb") as file:
            found = _read(data.dataset, file)
    except errors.DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise errors.DataError(
            errors.because(
                f"Data set '{data.dataset}': '{path}' cannot be read as a file of "
                "numpy.savez",
                error,
            )
        ) from error
    return labelled(data, found)


def _read(name: str, file: BinaryIO) -> dict[str, np.ndarray | None]:
    """Reads what there is of our names; of other names None."""
    loaded = np.load(file, allow_pickle=False)  # pickled objects would run code
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise ValueError("it is one array, without a name")
    size = sum(
        part.file_size
        for part in loaded.zip.infolist()
        if part.filename.removesuffix(".npy") in _NAMES
    )
    if size > decoding.MAX_DECODED_BYTES:
        raise decoding.too_large(name, size)
    return {key: loaded[key] if key in _NAMES else None for key in loaded}


def labelled(
    data: sections.Data, found: Mapping[str, np.ndarray | None]
) -> decoding.Labelled:
    """Makes a data set of arrays.

    Args:
      data: `dataset`, `image_size`, `crop_pct`, `validation_fraction` and
        `skip_bad_examples` are read.
      found: by the names in the module's docstring. Without a test array, an example
        is held out by a hash of its index.

    Raises:
      DataError: a name, a dtype, a shape or a length does not fit; or see
        `classes.assemble`.
    """
    name = data.dataset
    _check_names(name, found)
    class_names = None
    if "class_names" in found:
        class_names = _of_strings(name, found["class_names"])
    count = None if class_names is None else len(class_names)
    train = _part(data, found, "train", count)
    if "x_test" in found:
        test = _part(data, found, "test", count)
        if test.inputs.shape[1:] != train.inputs.shape[1:]:
            raise errors.DataError(
                f"Data set '{name}': x_train is {_told(found['x_train'])} and x_test "
                f"{_told(found['x_test'])}: examples must have one shape."
            )
    else:
        names = map(str, range(len(train.labels)))
        train, test = splitting.sides(train, names, data.validation_fraction)
    return classes.assemble(data, (train, test), [], _HINT, class_names)


def _check_names(name: str, found: Mapping[str, np.ndarray | None]) -> None:
    """Refuses arrays that are missing, or that would be left unread."""
    wanted = {"x_train", "y_train"}
    if {"x_test", "y_test"} & set(found):
        wanted |= {"x_test", "y_test"}
    missing = sorted(wanted - set(found))
    unread = [x for x in found if x[:2].lower() in ("x_", "y_") and x not in _NAMES]
    if missing or unread:
        raise errors.DataError(
            f"Data set '{name}' must have x_train and y_train, and may have x_test, "
            f"y_test and class_names; it has {', '.join(found) or 'nothing'}."
        )


def _part(
    data: sections.Data, found: Mapping[str, np.ndarray], split: str, count: int | None
) -> classes.Part:
    """Checks the inputs and the labels of one split.

    Args:
      data: see `labelled`.
      found: the arrays.
      split: `train` or `test`.
      count: of the classes that have names; or None.
    """
    x, y = found[f"x_{split}"], found[f"y_{split}"]
    labels = _labels(data.dataset, f"y_{split}", y, count)
    inputs = _images(data, f"x_{split}", x)
    if len(inputs) != len(labels):
        raise errors.DataError(
            f"Data set '{data.dataset}': x_{split} is {_told(x)} and y_{split} "
            f"{_told(y)}: there must be one label for each example."
        )
    return classes.Part(inputs, labels)


def _images(data: sections.Data, which: str, images: np.ndarray) -> np.ndarray:
    """Returns uint8 [n, h, w, c], resized if asked."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise errors.DataError(
            f"Data set '{data.dataset}': {which} is {_told(images)}; images must be "
            "uint8 [n, h, w] or [n, h, w, c], pixels from 0 to 255."
        )
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if not data.image_size:
        return images
    size = decoding.whole_side(data)
    made = None
    for start in range(0, len(images), _AT_ONCE):
        some = decoding.resized(images[start : start + _AT_ONCE], size)
        if made is None:
            made = decoding.allocate(data.dataset, len(images), some, None)
        made[start : start + len(some)] = some
    return made


def _labels(name: str, which: str, labels: np.ndarray, count: int | None) -> np.ndarray:
    """Returns int64 [n] or str [n]."""
    flat = labels.reshape(-1) if labels.shape[1:] == (1,) else labels
    is_integer = labels.dtype.kind in "iu"
    if flat.ndim != 1 or not (is_integer or (labels.dtype.kind == "U" and not count)):
        kinds = "integers" if count else "integers or strings"
        raise errors.DataError(
            f"Data set '{name}': {which} is {_told(labels)}; labels must be {kinds}, "
            "[n] or [n, 1]."
        )
    if not is_integer:
        return flat
    flat = flat.astype(np.int64)
    if count and len(flat) and not 0 <= flat.min() <= flat.max() < count:
        raise errors.DataError(
            f"Data set '{name}': {which} has labels from {flat.min()} to {flat.max()}; "
            f"they must be in [0, {count}), the number of class_names."
        )
    return flat


def _of_strings(name: str, class_names: np.ndarray) -> list[str]:
    if class_names.dtype.kind != "U" or class_names.ndim != 1 or not len(class_names):
        raise errors.DataError(
            f"Data set '{name}': class_names is {_told(class_names)}; names of classes "
            "must be strings, [classes]."
        )
    return class_names.tolist()


def _told(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"
