"""Emits loops and branches of a traced call again."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Protocol

import tensorflow as tf

from mp_loop.operations import bilinear, nodes


class Made(Protocol):
    """What was emitted of the graph around a loop or branch; see `emission`."""

    narrow: tf.DType

    def get(self, value: nodes.Value, dtype: tf.DType | None = None) -> tf.Tensor:
        """Returns what a value became, cast if it is a float32 one."""

    def fix(self, value: nodes.Value) -> bilinear.Fixed:
        """Prepares a value for a loop that reads it in every turn."""

    def inner(
        self,
        node: nodes.Node,
        graph: nodes.FuncGraph,
        known: Sequence[nodes.Value | None],
        tensors: Sequence[tf.Tensor | bilinear.Fixed],
        compiled: bool,
    ) -> list[tf.Tensor]:
        """Emits the body of a loop or branch."""


def loop(made: Made, node: nodes.Node) -> list[tf.Tensor]:
    """Emits a loop: what it changes keeps its dtype, the rest is rounded before it."""
    op = node.op
    body, test = (
        nodes.function(op.graph, op.get_attr(x).name) for x in ("body", "cond")
    )
    changes = [a is not b for a, b in zip(body.inputs, body.outputs, strict=True)]
    known = [None if c else v for v, c in zip(node.inputs, changes, strict=True)]
    wide = [made.get(value, tf.float32) for value in node.inputs]
    carried = [x for x, changed in zip(wide, changes, strict=True) if changed]
    fixed = [
        made.fix(value) if _may_be_fixed(value, ends) else x
        for value, x, ends in zip(
            known, wide, zip(body.inputs, test.inputs, strict=True), strict=True
        )
    ]

    def run(graph: nodes.FuncGraph, variables: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        left = iter(variables)
        tensors = [
            next(left) if changed else x
            for x, changed in zip(fixed, changes, strict=True)
        ]
        return made.inner(node, graph, known, tensors, compiled=True)

    def step(*variables: tf.Tensor) -> list[tf.Tensor]:
        outputs = zip(run(body, variables), changes, strict=True)
        return [_widen(made, x) for x, changed in outputs if changed]

    shapes = [
        value.tensor.shape
        for value, changed in zip(node.outputs, changes, strict=True)
        if changed
    ]
    last = iter(
        tf.while_loop(
            lambda *variables: run(test, variables)[0],
            step,
            carried,
            shape_invariants=shapes,
            parallel_iterations=op.get_attr("parallel_iterations"),
            maximum_iterations=nodes.most_iterations(op),
        )
    )
    return [
        next(last) if changed else x for x, changed in zip(wide, changes, strict=True)
    ]


def _may_be_fixed(value: nodes.Value | None, inner: Iterable[tf.Tensor]) -> bool:
    """Tells whether all turns of a loop see the same numbers.

    Args:
      value: what enters the loop; None if the loop changes it.
      inner: what it is in the functions of the loop.
    """
    if value is None or value.constant is not None:
        return False
    if value.variable is None:
        return value.is_float32
    readers = [reader for tensor in inner for reader in tensor.consumers()]
    return value.is_float32 or all(r.type == "ReadVariableOp" for r in readers)


def branches(made: Made, node: nodes.Node) -> list[tf.Tensor]:
    """Emits a choice; what comes of it is float32."""
    op, (index, *operands) = node.op, node.inputs
    if node.type.endswith("If"):
        names = [op.get_attr(x).name for x in ("else_branch", "then_branch")]
    else:
        names = [branch.name for branch in op.get_attr("branches")]

    def branch(name: str) -> list[tf.Tensor]:
        inner = nodes.function(op.graph, name)
        tensors = [made.get(value) for value in operands]
        # TensorFlow loses what a compiled part of a branch keeps.
        outputs = made.inner(node, inner, operands, tensors, compiled=False)
        return [_widen(made, x) for x in outputs]

    calls = [functools.partial(branch, name) for name in names]
    chosen = made.get(index)
    if node.type.endswith("If"):
        outputs = tf.cond(_as_bool(chosen), calls[1], calls[0])
    else:
        outputs = tf.switch_case(chosen, calls)
    return tf.nest.flatten(outputs)


def _as_bool(x: tf.Tensor) -> tf.Tensor:
    return x if x.dtype == tf.bool else tf.not_equal(x, tf.zeros([], x.dtype))


def _widen(made: Made, x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float32) if x.dtype == made.narrow else x
