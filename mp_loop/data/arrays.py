"""Arrays of examples and labels, from a file or from a user's function.

See `labelled_arrays` for what they must be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from mp_loop.config import errors, sections
from mp_loop.data import decoding, labelled_arrays, user_code


def of_npz(
    data: sections.Data,
    path: str,
    tokenize: labelled_arrays.Tokenize | None,
    task: str,
) -> decoding.Labelled:
    """Reads arrays from a file of NumPy's `savez` or `savez_compressed`.

    Args:
      data: see `labelled_arrays.make`.
      path: of the file.
      tokenize: see `labelled_arrays.make`.
      task: see `labelled_arrays.make`.

    Raises:
      DataError: the file cannot be read, or see `labelled_arrays.make`.
    """
    try:
        with open(path, "rb") as file:
            found = _read(data.dataset, file)
    except errors.DataError:
        raise
    except Exception as error:  # A damaged file can raise any type.
        raise errors.DataError(
            errors.because(
                f"Data set '{data.dataset}': '{path}' cannot be read as a file of "
                "numpy.savez",
                error,
            )
        ) from error
    return labelled_arrays.make(data, found, tokenize, task)


def _read(name: str, file: BinaryIO) -> dict[str, np.ndarray | None]:
    """Reads what there is of our names; of other names None."""
    loaded = np.load(file, allow_pickle=False)  # pickled objects would run code
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise ValueError("it is one array, without a name")
    ours = labelled_arrays.NAMES
    size = sum(
        part.file_size
        for part in loaded.zip.infolist()
        if part.filename.removesuffix(".npy") in ours
    )
    if size > decoding.MAX_DECODED_BYTES:
        raise decoding.too_large(name, size)
    return {key: loaded[key] if key in ours else None for key in loaded}


def of_function(
    data: sections.Data,
    name: str,
    tokenize: labelled_arrays.Tokenize | None,
    task: str,
) -> decoding.Labelled:
    """Calls a user's function, without arguments, for the arrays.

    Args:
      data: see `labelled_arrays.make`.
      name: `package.module:function`. It returns a dict of arrays, by the names of
        `labelled_arrays`, or ((x_train, y_train), (x_test, y_test)), as `load_data` of
        keras.datasets; anything that `numpy.asarray` takes is an array.
      tokenize: see `labelled_arrays.make`.
      task: see `labelled_arrays.make`.

    Raises:
      DataError: the function cannot be found, or fails; or see `labelled_arrays.make`.
    """
    given = f"`dataset` ('{data.dataset}')"
    function = user_code.function(given, name, errors.DataError, (), "no arguments")
    returned = user_code.call(f"'{name}'", function, errors.DataError)
    return labelled_arrays.make(data, _arrays(data.dataset, returned), tokenize, task)


def _arrays(name: str, returned: Any) -> dict[str, np.ndarray]:
    """Finds the arrays in what a user's function returned."""
    if not isinstance(returned, Mapping):
        try:
            (x_train, y_train), (x_test, y_test) = returned
        except (TypeError, ValueError) as error:
            raise errors.DataError(
                f"Data set '{name}' must return ((x_train, y_train), (x_test, y_test)) "
                "or a dict of arrays by these names; it returned "
                f"{type(returned).__name__}."
            ) from error
        returned = {
            "x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test
        }  # fmt: skip
    return {str(key): _array(name, key, value) for key, value in returned.items()}


def _array(name: str, key: str, value: object) -> np.ndarray:
    """Makes an array of what a user has; of objects that are all text, strings."""
    try:
        array = np.asarray(value)
    except Exception as error:  # An object's own conversion can raise any type.
        raise errors.DataError(
            errors.because(f"Data set '{name}': {key} is no array", error)
        ) from error
    if array.dtype == object and all(isinstance(x, str) for x in array.flat):
        return array.astype(str)
    return array
