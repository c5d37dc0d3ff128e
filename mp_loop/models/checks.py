"""Checks that a model fits the data that it will be trained on."""

from __future__ import annotations

from typing import Any

import keras

from mp_loop.config import errors
from mp_loop.models import heads


def check_input(name: str, model: Any, input_shape: heads.Shape) -> None:
    """Checks that a model takes the images or rows, and computes in float32.

    Raises:
      ModelError: it is no Keras model of one input and one output, or does not fit.
    """
    check_float32(name, model)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise errors.ModelError(
            f"`model` ('{name}') must have one input and one output."
        )
    wanted = model.inputs[0].shape[1:]
    if len(wanted) != len(input_shape) or any(
        w not in (None, n) for w, n in zip(wanted, input_shape, strict=True)
    ):
        held = "images" if len(input_shape) == 3 else "rows"
        raise errors.ModelError(
            f"`model` ('{name}') takes inputs of {tuple(wanted)}; the {held} are "
            f"{input_shape}."
        )


def check_float32(name: str, model: Any) -> None:
    """Checks that a model is a graph that computes in float32.

    Raises:
      ModelError: it does not.
    """
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise errors.ModelError(
            f"`model` ('{name}') must be a functional or built Sequential Keras model."
        )
    for layer in model._flatten_layers(include_self=False):
        policy = layer.dtype_policy
        if "float" not in policy.compute_dtype:
            continue  # a tokenizer, which is no part of the graph
        if (policy.compute_dtype, policy.variable_dtype) != ("float32", "float32"):
            raise errors.ModelError(
                f"`model` ('{name}') must be float32; layer '{layer.name}' is "
                f"{policy.name}."
            )


def check_output(name: str, model: keras.Model, wanted: heads.Shape) -> None:
    """Checks that a model gives one number for each class or target.

    Args:
      name: of the model.
      model: what is checked.
      wanted: the shape of an example's outputs.

    Raises:
      ModelError: it does not.
    """
    given = tuple(model.outputs[0].shape[1:])
    if given != wanted:
        of_pixels = " of each pixel" if len(wanted) > 1 else " or targets"
        raise errors.ModelError(
            f"`model` ('{name}') gives {given} for each example; the {wanted[-1]} "
            f"classes{of_pixels} need {wanted}."
        )
