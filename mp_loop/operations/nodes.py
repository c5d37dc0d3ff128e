"""The operations of a traced call as plain nodes, functions within it opened.

    graph = nodes.of_graph(func_graph)
    for node in graph.nodes: node.type, node.inputs, node.outputs

What only TensorFlow's graph knows (constants, variables, the bodies of functions) is
looked up here, so that who decides on dtypes need not.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Hashable, Iterable
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import function_def_to_graph, ops

FuncGraph: TypeAlias = tf.__internal__.FuncGraph

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
# The functions that an operation calls, by the attributes that name them.
_BODIES = {
    **{call: ("f",) for call in _CALLS},
    "Case": ("branches",),
    "If": ("then_branch", "else_branch"),
    "StatelessCase": ("branches",),
    "StatelessIf": ("then_branch", "else_branch"),
    "StatelessWhile": ("cond", "body"),
    "While": ("cond", "body"),
}
EVERYWHERE = frozenset({"everywhere"})  # all name scopes; see `Node.is_in`
_NUMBER = re.compile(r"_\d+$")  # by which TensorFlow tells equal names apart
# What an operation without these has no effect but its outputs.
_ONLY_READ = (
    "Placeholder",
    "ReadVariableOp",
    "ResourceGather",
    "ResourceGatherNd",
    "VarHandleOp",
)


@dataclasses.dataclass(eq=False)
class Value:
    """A tensor of the traced call.

    Attributes:
      tensor: in the traced graph; its dtype and shape are what float32 gave.
      constant: what it holds, if that is known.
      variable: what it is the handle of, or was read of, if it is.
    """

    tensor: tf.Tensor
    constant: np.ndarray | None = None
    variable: tf.Variable | None = None

    @property
    def is_float32(self) -> bool:
        """Whether it may be stored in 16 bits."""
        return self.tensor.dtype == tf.float32


@dataclasses.dataclass(eq=False)
class OwnGradient:
    """The traced gradient function of an operation.

    Attributes:
      given: placeholders for the gradients of the operation's outputs.
      captured: what else it reads, of the graph of the operation.
      captures: tensors that it reads of graphs around that one.
      graph: its nodes; its inputs are these three, one after the other.
      found: for each input of the operation, whether it has a gradient.
    """

    given: list[Value]
    captured: list[Value]
    captures: list[tf.Tensor]
    graph: Graph
    found: list[bool]


@dataclasses.dataclass(frozen=True)
class Inside:
    """The calls of functions that an operation is in.

    Attributes:
      prefix: their names.
      compiled: whether XLA compiles one of them.
    """

    prefix: str = ""
    compiled: bool = False


@dataclasses.dataclass(eq=False)
class Node:
    """An operation of the traced call.

    Attributes:
      op: in the traced graph.
      inputs: what it takes.
      outputs: what it makes.
      gradient: its own gradient function, if a `tf.custom_gradient` gave it one.
      inside: the calls of functions that it is in.
    """

    op: tf.Operation
    inputs: list[Value]
    outputs: list[Value]
    gradient: OwnGradient | None = None
    inside: Inside = Inside()

    @property
    def name(self) -> str:
        """Its name, after those of the calls that it is in."""
        return f"{self.inside.prefix}{self.op.name}"

    @property
    def reads(self) -> list[Value]:
        """What it takes, and what its own gradient function does."""
        return [*self.inputs, *(self.gradient.captured if self.gradient else ())]

    @property
    def type(self) -> str:
        """The operation's type, such as "MatMul"."""
        return self.op.type

    @property
    def bodies(self) -> list[FuncGraph]:
        """The `FuncGraph`s of a loop or a choice."""
        return [graph for graph, _ in inner_graphs(self.op)]

    def types(self) -> set[str]:
        """The types of the operations in its bodies, and in theirs."""
        found, left = set(), self.bodies
        while left:
            for op in left.pop().get_operations():
                found.add(op.type)
                left += [graph for graph, _ in inner_graphs(op)]
        return found

    def is_in(self, scopes: frozenset[str]) -> bool:
        """Tells whether it was made in one of some name scopes."""
        if not scopes or scopes is EVERYWHERE:
            return bool(scopes)
        parts = self.name.split("/")[:-1]
        return any(part in scopes or _NUMBER.sub("", part) in scopes for part in parts)

    @property
    def has_effect(self) -> bool:
        """Whether it does something beside making its outputs."""
        stateful = self.op.op_def.is_stateful
        random = "Random" in self.type
        return stateful and not random and self.type not in _ONLY_READ


@dataclasses.dataclass(eq=False)
class Graph:
    """The nodes of a traced call in the order in which they were made.

    Attributes:
      inputs: what the call took, then what it captured.
      outputs: what it returns.
      nodes: those that something depends on.
    """

    inputs: list[Value]
    outputs: list[Value]
    nodes: list[Node]


def of_graph(
    graph: FuncGraph, outputs: Iterable[tf.Tensor], inputs: Iterable[Value]
) -> Graph:
    """Reads a traced graph.

    Args:
      graph: a `FuncGraph`.
      outputs: tensors of it.
      inputs: values for all its placeholders.
    """
    inputs, made = list(inputs), []
    scope = {value.tensor.ref(): value for value in inputs}
    _read(graph, scope, made, Inside())
    found = [scope[tensor.ref()] for tensor in outputs]
    return Graph(inputs, found, _needed(made, found))


def _read(
    graph: tf.Graph, scope: dict[Hashable, Value], made: list[Node], inside: Inside
) -> None:
    """Appends the nodes of a graph; `scope` holds its inputs, then all of it."""
    for op in graph.get_operations():
        if op.outputs and all(tensor.ref() in scope for tensor in op.outputs):
            continue
        inputs = [scope[tensor.ref()] for tensor in op.inputs]
        if op.type in _CALLS:
            outputs = _open(graph, op, inputs, made, inside)
        else:
            outputs = [_value(op, tensor, inputs) for tensor in op.outputs]
            own = _own_gradient(op, scope)
            made.append(Node(op, inputs, outputs, own, inside))
        scope.update(zip((t.ref() for t in op.outputs), outputs, strict=True))


def _open(
    graph: tf.Graph,
    op: tf.Operation,
    inputs: list[Value],
    made: list[Node],
    inside: Inside,
) -> list[Value]:
    inner = function(graph, op.get_attr("f").name)
    scope = dict(zip((t.ref() for t in inner.inputs), inputs, strict=True))
    compiled = inside.compiled or _is_compiled(op)
    _read(inner, scope, made, Inside(f"{inside.prefix}{op.name}/", compiled))
    # A gradient may have added outputs to a function since it was called here.
    return [scope[tensor.ref()] for tensor in inner.outputs[: len(op.outputs)]]


def _is_compiled(call: tf.Operation) -> bool:
    try:
        return bool(call.get_attr("_XlaMustCompile"))
    except ValueError:
        return False


def _own_gradient(op: tf.Operation, scope: dict[Hashable, Value]) -> OwnGradient | None:
    """Traces the gradient function that a `tf.custom_gradient` registered, if any."""
    if op.type != "IdentityN":
        return None
    try:
        name = op.get_attr("_gradient_op_type").decode()
    except ValueError:
        return None
    with op.graph.as_default():
        graph = tf.__internal__.FuncGraph("gradient")
    with graph.as_default():
        given = [
            tf.compat.v1.placeholder(tensor.dtype, tensor.shape)
            for tensor in op.outputs
        ]
        found = ops.gradient_registry.lookup(name)(op, *given)
        found = list(found) if isinstance(found, list | tuple) else [found]
        made = [graph.capture(tf.convert_to_tensor(g)) for g in found if g is not None]
    inputs = [Value(placeholder) for placeholder in given]
    inside, outside = [], []
    for outer, inner in graph.captures:
        source = scope.get(outer.ref())
        known = Value(inner)
        if source is not None:
            known.variable, known.constant = source.variable, source.constant
        (outside if source is None else inside).append((source or outer, known))
    values = [*inputs, *(known for _, known in [*inside, *outside])]
    return OwnGradient(
        inputs,
        [source for source, _ in inside],
        [outer for outer, _ in outside],
        of_graph(graph, made, values),
        [g is not None for g in found],
    )


def _value(op: tf.Operation, tensor: tf.Tensor, inputs: list[Value]) -> Value:
    value = Value(tensor)
    if op.type == "Const":
        value.constant = tf.make_ndarray(op.get_attr("value"))
    elif op.type == "ReadVariableOp":
        value.variable = inputs[0].variable
    return value


def inner_graphs(op: tf.Operation) -> list[tuple[FuncGraph, int]]:
    """The functions that an operation calls, each with how often, as far as known."""
    names = [op.get_attr(attribute) for attribute in _BODIES.get(op.type, ())]
    names = [x for name in names for x in (name if type(name) is list else [name])]
    times = max(most_iterations(op) or 1, 1) if op.type.endswith("While") else 1
    return [(function(op.graph, name.name), times) for name in names]


def most_iterations(loop: tf.Operation) -> int | None:
    """Returns how often a loop may run, if it says so."""
    limit = loop.inputs[1]
    if limit.op.type == "Max":  # so Keras says how long a sequence is
        limit = limit.op.inputs[0]
    known = tf.get_static_value(limit)
    return None if known is None or np.max(known) < 0 else int(np.max(known))


def function(graph: tf.Graph | None, name: str) -> FuncGraph:
    """Returns the `FuncGraph` of a function that a graph calls."""
    while graph is not None:
        found = getattr(graph, "_functions", {}).get(name)
        if found is not None and getattr(found, "graph", None) is not None:
            return found.graph
        graph = getattr(graph, "outer_graph", None)
    definition = context.context().get_function_def(name)
    return function_def_to_graph.function_def_to_graph(definition)


def _needed(made: list[Node], outputs: list[Value]) -> list[Node]:
    """The nodes that outputs or effects depend on, in order."""
    wanted = {id(value) for value in outputs}
    kept = []
    for node in reversed(made):
        if node.has_effect or any(id(value) in wanted for value in node.outputs):
            kept.append(node)
            wanted |= {id(value) for value in node.reads}
    return kept[::-1]


def size(value: Value) -> tuple[int, int]:
    """How many dimensions are not known, and the product of the others."""
    shape = value.tensor.shape
    if shape.rank is None:
        return 0, 0
    known = [size for size in shape if size is not None]
    return shape.rank - len(known), math.prod(known)
