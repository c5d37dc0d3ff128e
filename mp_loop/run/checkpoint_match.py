"""Which variables of a training a checkpoint can fill.

A checkpoint of the same training fills all. One of another precision fills what does
not depend on it: master weights, slots, counters and, where they fit, other weights
and seeds. One of an earlier version does not fill what is counted since.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from mp_loop.config import json_values
from mp_loop.step import train_state

# First words of the names of what depends on the precision, and of what may.
_DEPENDENT = ("working_weights/", "loss_scale/")
_DEPENDENT_IF_DIFFERENT = ("other_weights/", "seeds/")

Tensors = Mapping[str, json_values.Object]  # as in `Manifest.tensors`


class MismatchError(ValueError):
    """A checkpoint is of another training; the message names the first difference."""


def match(
    variables: Mapping[str, tf.Variable], tensors: Tensors, convert: bool
) -> dict[str, tf.Variable]:
    """Returns the variables to be filled.

    Args:
      variables: of a training, by name.
      tensors: of a checkpoint, by name.
      convert: whether the checkpoint may be of another precision.

    Raises:
      MismatchError: a variable that must be filled cannot be.
    """
    variables = {
        name: variable
        for name, variable in variables.items()
        if name in tensors or name not in train_state.LATER
    }
    difference = _first_difference(variables, tensors)
    if not difference:
        return dict(variables)
    if convert:
        variables = _independent_of_precision(variables, tensors)
        tensors = {name: tensors[name] for name in variables if name in tensors}
        difference = _first_difference(variables, tensors)
    if difference:
        raise MismatchError(difference)
    return dict(variables)


def _independent_of_precision(
    variables: Mapping[str, tf.Variable], tensors: Tensors
) -> dict[str, tf.Variable]:
    """The variables that a checkpoint of another precision must or can fill."""
    chosen = {}
    for name, variable in variables.items():
        if name.startswith(_DEPENDENT):
            continue
        if name.startswith(_DEPENDENT_IF_DIFFERENT):
            wanted = {"dtype": variable.dtype.name, "shape": variable.shape.as_list()}
            if not wanted.items() <= tensors.get(name, {}).items():
                continue
        chosen[name] = variable
    return chosen


def _first_difference(variables: Mapping[str, tf.Variable], tensors: Tensors) -> str:
    """Describes the first difference between a training and a checkpoint, or ''."""
    for name, variable in variables.items():
        tensor = tensors.get(name)
        if tensor is None:
            return f"it does not hold {name} ({variable.name})"
        dtype, shape = variable.dtype.name, variable.shape.as_list()
        if (_restored_dtype(name, tensor["dtype"]), tensor["shape"]) != (dtype, shape):
            return (
                f"{name} ({variable.name}) is {dtype} {shape}; it holds "
                f"{tensor['dtype']} {tensor['shape']} ({tensor['variable']})"
            )
    extra = [name for name in tensors if name not in variables]
    if extra:
        return f"it also holds {extra[0]} ({tensors[extra[0]]['variable']})"
    return ""


def _restored_dtype(name: str, dtype: str) -> str:
    """The dtype to which a tensor is cast: the scale's integers were once int32."""
    return "int64" if name.startswith("loss_scale/") and dtype == "int32" else dtype
