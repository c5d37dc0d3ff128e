"""Emits a traced float32 call again, its products in 16 bits.

    outputs = Emission(tf.bfloat16).graph(graph, tensors)

A transformation in plain TensorFlow: it knows no layer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from mp_loop.operations import (
    again,
    bilinear,
    blocks,
    control_flow,
    nodes,
    planning,
    raw,
    regions,
    remaking,
    rules,
    spans,
    sums,
)


@dataclasses.dataclass(frozen=True)
class Emission:
    """How calls are emitted.

    Attributes:
      narrow: tf.float16 or tf.bfloat16.
      float32_products: multiply in float32 what is stored in 16 bits.
      compiled: whether XLA compiles regions.
      float32_scopes: name scopes whose operations stay in float32.
    """

    narrow: tf.DType
    float32_products: bool = False
    compiled: bool = True
    float32_scopes: frozenset[str] = frozenset()

    def graph(
        self,
        graph: nodes.Graph,
        tensors: Sequence[tf.Tensor],
        kinds: Mapping[int, rules.Kind] | None = None,
        fixed: Mapping[int, bilinear.Fixed] | None = None,
    ) -> list[tf.Tensor]:
        """Emits a graph.

        Args:
          graph: what was traced.
          tensors: what its inputs become: of their dtype, or 16 bits for float32.
          kinds: of inputs of which more is known than their dtype, by id.
          fixed: those inputs that a loop around the graph has rounded before, by id.

        Returns:
          What its outputs become, likewise.
        """
        plan = self.plan(graph, tensors, kinds or {})
        made = _Made(self, plan, fixed or {}, remaking.found(plan))
        for value, tensor in zip(graph.inputs, tensors, strict=True):
            made.tensors[id(value)] = tensor
        for item in spans.found(graph, plan):
            made.emit(item)
        return [made.get(value) for value in graph.outputs]

    def plan(
        self,
        graph: nodes.Graph,
        tensors: Sequence[tf.Tensor | tf.TensorSpec],
        kinds: Mapping[int, rules.Kind],
    ) -> planning.Plan:
        """Decides how a graph is emitted; see `graph`."""
        found = {
            id(value): (
                rules.Kind.NARROW if x.dtype == self.narrow else rules.Kind.FLOAT32
            )
            for value, x in zip(graph.inputs, tensors, strict=True)
            if value.is_float32
        }
        return planning.plan(graph, found | kinds, self.narrow, self.float32_scopes)


class _Made:
    """What was emitted of one graph."""

    def __init__(
        self,
        emission: Emission,
        plan: planning.Plan,
        fixed: Mapping[int, bilinear.Fixed],
        remade: frozenset[int] = frozenset(),
    ):
        self.emission, self.plan, self.fixed = emission, plan, dict(fixed)
        self.narrow = emission.narrow
        self.tensors: dict[int, tf.Tensor] = {}
        self._graph = (
            None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        )
        self._cast: dict[tuple[int, tf.DType], tf.Tensor] = {}
        self._remade = remade
        self._remakes: dict[int, again.Remake] = {}

    def get(self, value: nodes.Value, dtype: tf.DType | None = None) -> tf.Tensor:
        """Returns what a value became, cast if it is a float32 one."""
        if value.constant is not None and id(value) not in self.tensors:
            dtype = dtype if value.is_float32 and dtype else value.tensor.dtype
            return tf.constant(value.constant, dtype)
        if value.variable is not None and value.tensor.dtype == tf.resource:
            return value.variable.handle  # one for all who read and write it
        tensor, fixed = self.tensors[id(value)], self.fixed.get(id(value))
        if fixed and dtype is None and self._is_narrow(value):
            dtype = self.narrow
        if not value.is_float32 or dtype in (None, tensor.dtype):
            return tensor
        key = (id(value), dtype)
        if key not in self._cast:  # once for all who read it
            self._cast[key] = fixed.narrow() if fixed else tf.cast(tensor, dtype)
        return self._cast[key]

    def _is_narrow(self, value: nodes.Value) -> bool:
        return self.plan.kinds.get(id(value)) is rules.Kind.NARROW

    def fix(self, value: nodes.Value) -> bilinear.Fixed:
        """Prepares a value for a loop that reads it in every turn."""
        if id(value) in self.fixed:
            return self.fixed[id(value)]
        if value.is_float32:
            return self._rounded(self.get(value, tf.float32), self.get(value))
        read = value.variable.value()
        return self._rounded(read, read)

    def _rounded(self, source: tf.Tensor, tensor: tf.Tensor) -> bilinear.Fixed:
        narrow, made = self.narrow, {}

        def cast(dtype: tf.DType) -> tf.Tensor:
            if dtype not in made:
                with self._graph.as_default() if self._graph else tf.init_scope():
                    rounded = tf.cast(tf.stop_gradient(tensor), narrow)
                    made[dtype] = tf.cast(rounded, dtype)
            return made[dtype]

        return bilinear.Fixed(source, narrow, cast)

    def emit(self, item: nodes.Node | planning.Region | spans.Span) -> None:
        """Emits what is next."""
        if isinstance(item, spans.Span):
            self._span(item)
        elif isinstance(item, planning.Region):
            self._set(item.outputs, self._region(item))
        elif item.type != "Const":
            self._set(item.outputs, self._node(item))

    def _set(self, values: Sequence[nodes.Value], tensors: Sequence[tf.Tensor]) -> None:
        for value, tensor in zip(values, tensors, strict=True):
            self.tensors[id(value)] = tensor

    def _region(self, region: planning.Region) -> list[tf.Tensor]:
        emission = self.emission
        inputs = [self.get(value) for value in region.inputs]
        program = regions.program(region, emission.narrow)
        for i, value in enumerate(region.outputs):
            if id(value) in self._remade:
                self._remakes[id(value)] = regions.remake(
                    program, i, inputs, emission.compiled
                )
        return regions.run(program, inputs, emission.compiled)

    def _span(self, span: spans.Span) -> None:
        if any(id(value) in self.fixed for value in span.inputs):
            for item in span.items:
                self.emit(item)
            return

        def compute(*tensors: tf.Tensor) -> list[tf.Tensor]:
            made = _Made(self.emission, self.plan, {})
            made._set(span.inputs, tensors)
            for item in span.rows.slices.whole if span.rows else span.items:
                made.emit(item)
            return [made.get(value) for value in leaving]

        rows = span.rows
        leaving = [v for v, _ in rows.slices.entering] if rows else span.outputs
        tensors = [self.get(value) for value in span.inputs]
        if rows:
            outputs = [self._by_rows(rows, span.outputs[0], compute, tensors)]
        else:
            outputs = again.run(compute, tensors)
        self._set(span.outputs, outputs)

    def _by_rows(
        self,
        rows: spans.Rows,
        result: nodes.Value,
        prepare: Callable[..., list[tf.Tensor]],
        tensors: Sequence[tf.Tensor],
    ) -> tf.Tensor:
        """Computes a result by rows, of what `prepare` makes of tensors."""
        entering = [value for value, _ in rows.slices.entering]
        axes = [axis for _, axis in rows.slices.entering]
        place = next(i for i, axis in enumerate(axes) if axis is not None)

        def compute(*tensors: tf.Tensor) -> tf.Tensor:
            made = _Made(self.emission, self.plan, {})
            made._set(entering, tensors)
            count = tensors[place].shape[axes[place]]
            for item in rows.slices.inside:
                told = rows.slices.told(item)
                if told:
                    made._emit_rows(item, *told, count)
                else:
                    made.emit(item)
            return made.get(result)

        return blocks.run(
            compute, tensors, axes, rows.cut, self.narrow, rows.watched, prepare
        )

    def _emit_rows(
        self, node: nodes.Node, shape: nodes.Value, axis: int, count: int
    ) -> None:
        """Emits a node that is told the shape of its output, for some of its rows."""
        whole = self.get(shape)
        parts = tf.unstack(whole, node.outputs[0].tensor.shape.rank)
        parts[axis] = tf.constant(count, whole.dtype)
        self.tensors[id(shape)] = tf.stack(parts)
        self.emit(node)
        self.tensors[id(shape)] = whole

    def _node(self, node: nodes.Node) -> list[tf.Tensor]:
        if node.type in _STRUCTURES:
            return _STRUCTURES[node.type](self, node)
        if node.gradient:
            return _own_gradient(self, node)
        if node.type == "IdentityN":
            return [self.get(value) for value in node.inputs]
        if node.type in rules.SHAPES:
            return self.call(node, [self.get(value) for value in node.inputs])
        run = self.plan.runs[id(node)]
        if run is rules.Run.PRODUCT:
            return self._product(node)
        if run is rules.Run.NARROW:
            return self._narrow(node)
        return self.call(node, [self.get(x, tf.float32) for x in node.inputs])

    def call(self, node: nodes.Node, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Emits a node as it is, on given operands."""
        return _caller(node)(inputs)

    def inner(
        self,
        node: nodes.Node,
        graph: nodes.FuncGraph,
        known: Sequence[nodes.Value | None],
        tensors: Sequence[tf.Tensor | bilinear.Fixed],
        compiled: bool,
    ) -> list[tf.Tensor]:
        """Emits the body of a loop or branch.

        Args:
          node: the loop or choice.
          graph: the `FuncGraph` of the body.
          known: for each of its inputs, the value in the graph around it that it
            always is; None where a loop changes it.
          tensors: what its inputs became.
          compiled: whether XLA may compile regions in it.
        """
        scopes = self.emission.float32_scopes
        emission = dataclasses.replace(
            self.emission,
            compiled=self.emission.compiled and compiled,
            float32_scopes=nodes.EVERYWHERE if node.is_in(scopes) else scopes,
        )
        inputs = [nodes.Value(placeholder) for placeholder in graph.inputs]
        given, kinds, fixed = [], {}, {}
        for own, value, tensor in zip(inputs, known, tensors, strict=True):
            if value is not None:
                own.variable, own.constant = value.variable, value.constant
                if value.is_float32:
                    kinds[id(own)] = self.plan.kinds[id(value)]
            if isinstance(tensor, bilinear.Fixed):
                fixed[id(own)], tensor = tensor, tensor.source
            given.append(tensor)
        read = nodes.of_graph(graph, graph.outputs, inputs)
        return emission.graph(read, given, kinds, fixed)

    def _product(self, node: nodes.Node) -> list[tf.Tensor]:
        emission = self.emission
        inputs = [
            self.fixed.get(id(value)) or self.get(value, emission.narrow)
            for value in node.inputs
        ]
        first, second = (i for i, v in enumerate(node.inputs) if v.is_float32)
        if node.type.startswith("BatchMatMul"):
            product = bilinear.matrices(
                node.op.get_attr("adj_x"), node.op.get_attr("adj_y")
            )
        else:
            product = bilinear.of_operands(_caller(node), inputs, (first, second))
        multiply = functools.partial(
            bilinear.multiply,
            product,
            in_float32=emission.float32_products,
            remake=self._remakes.get(id(node.inputs[first])),
        )
        if node.inside.compiled:  # grouped convolutions have a gradient there alone
            multiply = tf.function(multiply, jit_compile=True, autograph=False)
        return [multiply(inputs[first], inputs[second])]

    def _narrow(self, node: nodes.Node) -> list[tf.Tensor]:
        narrow = self.narrow
        raws = [self.get(value) for value in node.inputs]
        if node.type in ("Add", "AddV2", "Sub"):
            x, y = raws
            return [sums.add(x, y, narrow, -1 if node.type == "Sub" else 1)]
        if node.type == "BiasAdd" and node.op.get_attr("data_format") == b"NHWC":
            return [sums.add(*raws, narrow)]
        if node.type in _ADD_UP or (
            node.type in rules.MERGES | rules.SUMS and rules.broadcasts(node)
        ):
            return sums.in_float32_backward(_caller(node), raws, narrow)
        inputs = [self.get(value, narrow) for value in node.inputs]
        remake = self._remakes.get(id(node.inputs[0]))
        if remake and node.type == "Reshape":
            self._remakes[id(node.outputs[0])] = lambda these: self.call(
                node, [remake(these), *inputs[1:]]
            )[0]
        return self.call(node, inputs)


# Moves that send a number to several places.
_ADD_UP = ("BiasAdd", "BroadcastTo", "GatherNd", "GatherV2", "MirrorPad", "Tile")


def _caller(node: nodes.Node) -> Callable[[Sequence[tf.Tensor]], list[tf.Tensor]]:
    """A function that emits a node on given operands."""
    sizes, attributes = raw.sizes(node.op), raw.attributes(node.op)
    return lambda inputs: raw.call(
        node.op.op_def, inputs, sizes, attributes, name=node.name
    )


def _read(made: _Made, node: nodes.Node) -> list[tf.Tensor]:
    """Reads a variable such that a tape sees it."""
    handle, value = node.inputs[0], node.outputs[0]
    if id(handle) in made.fixed:
        made.fixed[id(value)] = made.fixed[id(handle)]
        return [made.fixed[id(handle)].source]
    if handle.variable is None:
        return made.call(node, [made.get(handle)])
    return [handle.variable.value()]


def _gather(made: _Made, node: nodes.Node) -> list[tf.Tensor]:
    """Looks rows of a variable up; their gradient stays sparse."""
    variable = node.inputs[0].variable
    inputs = [made.get(value) for value in node.inputs]
    if variable is None or node.op.get_attr("batch_dims"):
        return made.call(node, inputs)
    return [variable.sparse_read(inputs[1])]


def _own_gradient(made: _Made, node: nodes.Node) -> list[tf.Tensor]:
    """Emits a `tf.custom_gradient`: its gradient function is emitted as well."""
    own = node.gradient
    captured = [*(made.get(value) for value in own.captured), *own.captures]
    weights = {
        id(inner): rules.Kind.WEIGHT
        for inner, value in zip(
            own.graph.inputs[len(own.given) :], own.captured, strict=False
        )
        if made.plan.kinds.get(id(value)) is rules.Kind.WEIGHT
    }

    return regions.passed_on(
        [made.get(value) for value in node.inputs],
        own.found,
        lambda grads: made.emission.graph(own.graph, [*grads, *captured], weights),
    )


_STRUCTURES = {
    "Case": control_flow.branches,
    "If": control_flow.branches,
    "ReadVariableOp": _read,
    "ResourceGather": _gather,
    "StatelessCase": control_flow.branches,
    "StatelessIf": control_flow.branches,
    "StatelessWhile": control_flow.loop,
    "While": control_flow.loop,
}
