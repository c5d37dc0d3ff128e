"""Models and weights in files."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import zipfile
from collections.abc import Callable, Iterator
from typing import IO

import h5py
import keras
import numpy as np

from mp_loop.config import errors
from mp_loop.models import model_difference

# What a file may unpack to: this many times its size, or so many bytes.
_LARGEST_RATIO = 100
_ALWAYS_ALLOWED = 2**26


def load(path: str, argument: str = "model") -> keras.Model:
    """Loads a `.keras` file; it must not bring code.

    Args:
      path: of the file.
      argument: the name of the argument that names it, for messages.

    Raises:
      ModelError: there is no such file, it cannot be loaded, it unpacks to far more
        than its size, or a weight is not finite.
    """
    named = f"`{argument}` ('{path}')"
    _require_file(path, named)
    if not zipfile.is_zipfile(path):
        raise errors.ModelError(f"{named} is not a .keras file.")
    _check_archive(path, named)
    with _damage_named(named):
        # In safe mode a file cannot run code.
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    _check_finite(model, named)
    return model


def load_weights(
    path: str,
    model: keras.Model,
    remake: Callable[[tuple[int, ...]], keras.Model] | None = None,
) -> None:
    """Loads a file's weights into a model, which may lack the file's last layers.

    Args:
      path: of a `.weights.h5` file, or of a `.keras` file with a whole model.
      model: the model to change.
      remake: makes the same model for inputs of another shape, where a file's model
        has another one; None: the shapes are equal.

    Raises:
      ModelError: the file cannot be loaded, its weights are of another model, or its
        model computes something else from them; or a weight is not finite.
    """
    named = f"`weights` ('{path}')"
    _require_file(path, named)
    if path.endswith(".weights.h5"):
        _check_arrays(path, os.path.getsize(path), named)
        with _damage_named(named):
            model.load_weights(path)
        return _check_finite(model, named)
    if not path.endswith(".keras"):
        raise errors.ModelError(
            f"{named} must be imagenet, or end in .keras or .weights.h5."
        )
    theirs = load(path, argument="weights")
    _copy_weights(theirs, model, named)
    shape = theirs.inputs[0].shape[1:]
    if remake and None not in shape and shape != model.inputs[0].shape[1:]:
        same_size = remake(shape)
        _copy_weights(theirs, same_size, named)
    else:
        same_size = model
    flag = shlex.quote(f"--model={path}")
    if difference := model_difference.describe(same_size, theirs):
        raise errors.ModelError(
            f"{named} are of a model that computes something else than "
            f"'{model.name}': {difference}. {flag} trains the model of the file."
        )


def _copy_weights(theirs: keras.Model, ours: keras.Model, named: str) -> None:
    """Assigns the first weights of a model to another, if all of them fit."""
    given = theirs.weights[: len(ours.weights)]
    for to, value in itertools.zip_longest(ours.weights, given):
        if value is None or to.shape != value.shape:
            found = "nothing" if value is None else f"{value.path} {value.shape}"
            raise errors.ModelError(
                f"{named} are of another model than '{ours.name}': for {to.path} "
                f"{to.shape} there is {found}."
            )
    for to, value in zip(ours.weights, given, strict=True):
        to.assign(value)


def _require_file(path: str, named: str) -> None:
    if not os.path.isfile(path):
        raise errors.ModelError(f"{named}: there is no such file.")


@contextlib.contextmanager
def _damage_named(named: str) -> Iterator[None]:
    """Turns what reading a damaged file raises, of any type, into a ModelError."""
    try:
        yield
    except errors.ModelError:
        raise
    except Exception as error:
        raise errors.ModelError(
            errors.because(f"{named} cannot be loaded", error)
        ) from error


def _check_archive(path: str, named: str) -> None:
    """Refuses a `.keras` file that unpacks to far more than its size."""
    size = os.path.getsize(path)
    with _damage_named(named), zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        _check_size(unpacked, size, named)
        for member in archive.namelist():
            if member.endswith(".h5"):
                with archive.open(member) as file:
                    _check_arrays(file, size, named)


def _check_arrays(file: str | IO[bytes], size: int, named: str) -> None:
    """Refuses arrays of an HDF5 file that are no numbers, or far larger than it."""
    total = 0

    def visit(name: str, found: h5py.Dataset | h5py.Group) -> None:
        nonlocal total
        if isinstance(found, h5py.Dataset):
            if found.dtype.kind not in "biufV":  # V: bfloat16
                raise errors.ModelError(f"{named}: {name} holds {found.dtype} numbers.")
            total += found.dtype.itemsize * int(np.prod(found.shape, dtype=object))

    with _damage_named(named), h5py.File(file, "r") as arrays:
        arrays.visititems(visit)
    _check_size(total, size, named)


def _check_size(unpacked: int, size: int, named: str) -> None:
    if unpacked > max(_LARGEST_RATIO * size, _ALWAYS_ALLOWED):
        raise errors.ModelError(
            f"{named} must not unpack to more than {_LARGEST_RATIO} times its size: "
            f"{size} bytes become {unpacked}."
        )


def _check_finite(model: keras.Model, named: str) -> None:
    """Refuses weights with NaN or inf: no step could be applied to them."""
    for weight in model.weights:
        if not np.all(np.isfinite(np.asarray(weight).astype("float64"))):
            raise errors.ModelError(f"{named}: {weight.path} holds NaN or inf.")
