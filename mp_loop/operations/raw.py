"""Calls an operation by its type, as a traced graph holds it."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Hashable, Sequence

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.core.framework import op_def_pb2
from tensorflow.python.framework import op_def_registry

from mp_loop.distributed import nests


def attributes(op: tf.Operation) -> dict[str, Hashable]:
    """The attributes of an operation that its operands do not tell.

    Returns:
      By the names that TensorFlow's kernels know them by; values are hashable.
    """
    inferred = {
        name
        for operand in op.op_def.input_arg
        for name in (operand.type_attr, operand.number_attr, operand.type_list_attr)
    }
    return {
        declared.name: _plain(op.get_attr(declared.name), declared.type)
        for declared in op.op_def.attr
        if declared.name not in inferred
    }


def call(
    op_def: op_def_pb2.OpDef,
    inputs: Sequence[tf.Tensor],
    sizes: Sequence[int],
    attributes: dict[str, Hashable],
    name: str | None = None,
) -> list[tf.Tensor]:
    """Calls an operation.

    Args:
      op_def: what it takes.
      inputs: its operands, one after the other.
      sizes: for each of its arguments, how many of the operands belong to it; 0: one
        that is no list.
      attributes: as `attributes` returns them.
      name: for the new operation.
    """
    function, names = _function(op_def.name)
    arguments, left = {}, list(inputs)
    for declared, size in zip(op_def.input_arg, sizes, strict=True):
        is_list = declared.number_attr or declared.type_list_attr
        arguments[declared.name] = left[:size] if is_list else left[0]
        left = left[size:] if is_list else left[1:]
    arguments |= {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in attributes.items()
    }
    made = function(**{names[key]: x for key, x in arguments.items()}, name=name)
    if made is None or isinstance(made, tf.Operation):
        return []
    return tf.nest.flatten(made)


def sizes(op: tf.Operation) -> tuple[int, ...]:
    """How many operands belong to each argument of an operation; see `call`."""

    def size(declared: op_def_pb2.OpDef.ArgDef) -> int:
        if declared.number_attr:
            return op.get_attr(declared.number_attr)
        if declared.type_list_attr:
            return len(op.get_attr(declared.type_list_attr))
        return 0

    return tuple(size(declared) for declared in op.op_def.input_arg)


@functools.cache
def _function(kind: str) -> tuple[Callable[..., nests.Nest], dict[str, str]]:
    """The Python function of an operation, and what it calls its arguments."""
    # What Keras' `slice_update` is made of, say, is in a module of its own.
    in_python = re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()
    function = getattr(tf.raw_ops, kind, getattr(gen_xla_ops, in_python, None))
    if function is None:
        raise ValueError(f"Operation {kind} is of no public module of TensorFlow.")
    parameters = [p for p in inspect.signature(function).parameters if p != "name"]
    declared = op_def(kind)
    own = [x.name for x in declared.input_arg]
    inferred = {
        name
        for x in declared.input_arg
        for name in (x.type_attr, x.number_attr, x.type_list_attr)
    }
    own += [x.name for x in declared.attr if x.name not in inferred]
    # Python renames a few; they keep their order.
    renamed = [name for name in own if name not in parameters]
    free = [name for name in parameters if name not in own]
    return function, {
        **{name: name for name in own},
        **dict(zip(renamed, free, strict=True)),
    }


def op_def(kind: str) -> op_def_pb2.OpDef:
    """The declaration of an operation type."""
    return op_def_registry.get(kind)


def _plain(value: object, kind: str) -> Hashable:
    """An attribute's value as something that can be compared."""
    if isinstance(value, bytes) and kind != "tensor":
        return value.decode("latin-1")
    if isinstance(value, list):
        return tuple(x.decode("latin-1") if isinstance(x, bytes) else x for x in value)
    return value
