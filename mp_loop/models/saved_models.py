"""Models and weights in files."""

from __future__ import annotations

import itertools
import os
import zipfile

import keras

from mp_loop.config import errors


def load(path: str, argument: str = "model") -> keras.Model:
    """Loads a `.keras` file; it must not bring code.

    Args:
      path: of the file.
      argument: the name of the argument that names it, for messages.

    Raises:
      ModelError: there is no such file, or it cannot be loaded.
    """
    if not os.path.isfile(path):
        raise errors.ModelError(f"`{argument}` ('{path}'): there is no such file.")
    if not zipfile.is_zipfile(path):
        raise errors.ModelError(f"`{argument}` ('{path}') is not a .keras file.")
    try:
        # In safe mode a file cannot run code.
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # A damaged archive or config can raise any type.
        raise errors.ModelError(
            errors.because(f"`{argument}` ('{path}') cannot be loaded", error)
        ) from error


def load_weights(path: str, model: keras.Model) -> None:
    """Loads a file's weights into a model, which may lack the file's last layers.

    Args:
      path: of a `.weights.h5` file, or of a `.keras` file with a whole model.
      model: the model to change.

    Raises:
      ModelError: the file cannot be loaded, or its weights are of another model.
    """
    if not os.path.isfile(path):
        raise errors.ModelError(f"`weights` ('{path}'): there is no such file.")
    if path.endswith(".weights.h5"):
        try:
            return model.load_weights(path)
        except Exception as error:  # A damaged file can raise any type.
            raise errors.ModelError(
                errors.because(f"`weights` ('{path}') cannot be loaded", error)
            ) from error
    if not path.endswith(".keras"):
        raise errors.ModelError(
            f"`weights` ('{path}') must be imagenet, or end in .keras or .weights.h5."
        )
    given = load(path, argument="weights").weights[: len(model.weights)]
    for ours, theirs in itertools.zip_longest(model.weights, given):
        if theirs is None or ours.shape != theirs.shape:
            found = "nothing" if theirs is None else f"{theirs.path} {theirs.shape}"
            raise errors.ModelError(
                f"`weights` ('{path}') are of another model than '{model.name}': for "
                f"{ours.path} {ours.shape} there is {found}."
            )
    for ours, theirs in zip(model.weights, given, strict=True):
        ours.assign(theirs)
