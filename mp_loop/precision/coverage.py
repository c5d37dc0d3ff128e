"""How much of a model multiplies in 16 bits.

    print(coverage.coverage(model, "float16"))
    # 97.1 % of this model's multiply-adds run in float16; in float32: head (2.9 %).

The forward pass of the twin is traced and its products are counted, by the type of
their operands and the layer that makes them.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Hashable, Iterator, Mapping

import keras
import tensorflow as tf

from mp_loop.config import choices, json_values
from mp_loop.distributed import nests
from mp_loop.operations import nodes, rules
from mp_loop.precision import twins

# What an unknown length counts as; shares hardly depend on it.
LENGTH = 64


def percent(share: float) -> str:
    """Says a share such that a little is not nothing, nor nearly all of it all."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    return f"{min(100 * share, 99.9):.1f} %"


@dataclasses.dataclass(frozen=True)
class Share:
    """What one layer multiplies.

    Attributes:
      layer: its name; of one inside another layer, after its name and a slash.
      narrow: multiply-adds of 16-bit operands, for one example; for a whole batch,
        where the model is made for batches of one size.
      float32: those of float32 operands.
    """

    layer: str
    narrow: int
    float32: int

    @property
    def total(self) -> int:
        """All its multiply-adds."""
        return self.narrow + self.float32


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What a model multiplies in 16 bits and in float32.

    Attributes:
      dtype: "float16" or "bfloat16".
      layers: those that multiply, in the order of their first product.
    """

    dtype: str
    layers: tuple[Share, ...]

    @property
    def share(self) -> float:
        """Of all multiply-adds, how many have 16-bit operands; from 0 to 1."""
        total = sum(layer.total for layer in self.layers)
        return sum(layer.narrow for layer in self.layers) / total if total else 0.0

    @property
    def by_layer(self) -> tuple[Share, ...]:
        """The same for the model's own layers, what is inside them added up."""
        sums: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
        for part in self.layers:
            found = sums[part.layer.split("/")[0]]
            found[0] += part.narrow
            found[1] += part.float32
        return tuple(Share(name, *found) for name, found in sums.items())

    def rows(self) -> list[tuple[str, ...]]:
        """A table by layer, with a head."""
        total = max(sum(layer.total for layer in self.layers), 1)
        return [
            ("multiply-adds of", "share", f"in {self.dtype}"),
            *(
                (x.layer, percent(x.total / total), percent(x.narrow / (x.total or 1)))
                for x in self.by_layer
            ),
        ]

    def values(self) -> dict[str, json_values.Json]:
        """What a run keeps of it."""
        return {"text": str(self), "share": self.share, "layers": self.rows()}

    def __str__(self) -> str:
        total = sum(layer.total for layer in self.layers)
        if not self.share:
            return (
                f"Nothing of this model multiplies in {self.dtype}: it is as slow, and "
                "takes as much memory, as in float32."
            )
        line = (
            f"{percent(self.share)} of this model's multiply-adds run in {self.dtype}"
        )
        left = sorted(self.by_layer, key=lambda layer: -layer.float32)
        named = [
            f"{layer.layer} ({percent(layer.float32 / total)})"
            for layer in left
            if layer.float32
        ]
        if not named:
            return f"{line}."
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        return f"{line}; in float32: {', '.join(named[:3])}{more}."


def coverage(
    model: keras.Model, dtype: str, float32_layers: str = "", inputs: nests.Nest = None
) -> Coverage:
    """Counts what a model multiplies in 16 bits.

    Args:
      model: a built float32 Keras model.
      dtype: "float16" or "bfloat16".
      float32_layers: as for `twins.half_precision_twin`.
      inputs: an example of what the model takes, nested tensors or specs; None: what
        the model itself tells, sequences of unknown length being of `LENGTH`,
        or as long as the model allows.

    Raises:
      ValueError: as `twins.half_precision_twin`.
    """
    twin = twins.half_precision_twin(model, dtype, float32_layers)
    return of_twin(twin, model, dtype, inputs)


def of_twin(
    twin: keras.Model, model: keras.Model, dtype: str, inputs: nests.Nest = None
) -> Coverage:
    """Counts what a twin multiplies; see `coverage`."""
    given = _inputs(model) if inputs is None else inputs
    graph = tf.__internal__.FuncGraph("coverage")
    with graph.as_default(), keras.StatelessScope():
        length = min([LENGTH, *_positions(model)])
        batch = _batch(model)
        twin(
            keras.tree.map_structure(lambda x: _placeholder(x, batch, length), given),
            training=False,
        )
    counts: Mapping[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    names = {layer.name for layer in model._flatten_layers(include_self=False)}
    for op, times, around in _products(graph, {}):
        narrow = _is_narrow(op.inputs[-1], around)
        counts[_layer(op, names)][not narrow] += multiply_adds(op) * times
    shares = [Share(name, *found) for name, found in counts.items()]
    return Coverage(dtype, tuple(shares))


def is_nothing(twin: keras.Model, model: keras.Model) -> bool:
    """Tells whether a twin is known to multiply nothing in 16 bits."""
    if any(v.dtype in choices.HALF_PRECISIONS for v in twin.weights):
        return False
    if not getattr(model, "inputs", None):
        return False
    return not of_twin(twin, model, "float16").share


def multiply_adds(op: tf.Operation) -> int:
    """Counts the multiply-adds of a product whose shapes are known; else 0."""
    if op.type == "Einsum":
        return _of_einsum(op)
    transpose = "Backprop" in op.type  # of a convolution
    y, z = op.inputs[1].shape, (op.inputs[2] if transpose else op.outputs[0]).shape
    if not (y.is_fully_defined() and z.is_fully_defined()):
        return 0
    if "MatMul" in op.type:
        transposed = op.get_attr("transpose_b" if op.type == "MatMul" else "adj_y")
        return z.num_elements() * y[-1 if transposed else -2]
    if op.type == "DepthwiseConv2dNative":
        return z.num_elements() * math.prod(y[:2])
    return z.num_elements() * math.prod(y[:-1])  # height, width, channels in


def _of_einsum(op: tf.Operation) -> int:
    left = op.get_attr("equation").decode().partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for labels, tensor in zip(left, op.inputs, strict=True):
        if not tensor.shape.is_fully_defined():
            return 0
        sizes |= dict(zip(labels, tensor.shape.as_list(), strict=True))
    return math.prod(sizes.values())


def _products(
    graph: nodes.FuncGraph, around: Mapping[Hashable, tf.Tensor], times: int = 1
) -> Iterator[tuple[tf.Operation, int, Mapping[Hashable, tf.Tensor]]]:
    """Yields the products of a graph, how often each is run, and what goes into it.

    Args:
      graph: a `FuncGraph`.
      around: for each of its inputs, by reference, a tensor of the graph around it.
      times: how often it is run.
    """
    for op in graph.get_operations():
        if op.type in rules.PRODUCTS and rules.contracts(op):
            yield op, times, around
        for inner, again in nodes.inner_graphs(op):
            given = op.inputs[len(op.inputs) - len(inner.inputs) :]
            pairs = zip((t.ref() for t in inner.inputs), given, strict=True)
            yield from _products(inner, {**around, **dict(pairs)}, times * again)


def _is_narrow(operand: tf.Tensor, around: Mapping[Hashable, tf.Tensor]) -> bool:
    """Tells whether a tensor is of 16 bits, or a float32 copy of one that is."""
    while operand.dtype == tf.float32:
        if operand.ref() in around:
            operand = around[operand.ref()]
        elif operand.op.type in (*rules.MOVES, "Cast"):
            operand = operand.op.inputs[0]
        else:
            break
    return operand.dtype.name in choices.HALF_PRECISIONS


def _layer(op: tf.Operation, names: set[str]) -> str:
    """Names the layers of a model around an operation, from outside in."""
    scopes = op.name.split("/")[:-1]
    # TensorFlow numbers scopes that it meets again.
    plain = [x if x in names else re.sub(r"_\d+$", "", x) for x in scopes]
    found = dict.fromkeys(x for x in plain if x in names)
    return "/".join(found) or op.name.rsplit("/", 1)[-1]


def _inputs(model: keras.Model) -> nests.Nest:
    """What a model takes, as far as it knows."""
    inputs = getattr(model, "inputs", None)
    if inputs:
        return inputs[0] if len(inputs) == 1 else model.input
    shapes = getattr(model, "_build_shapes_dict", None) or {}
    if list(shapes) == ["input_shape"] and isinstance(shapes["input_shape"], tuple):
        return keras.KerasTensor(shapes["input_shape"], "float32")
    raise ValueError(
        f"`inputs` (None) must be an example of what `model` ({model.name}) takes: it "
        "does not tell by itself."
    )


def _positions(model: keras.Model) -> list[int]:
    """How many tokens keras_hub's backbones can number."""
    found = [getattr(x, "max_sequence_length", None) for x in model._flatten_layers()]
    return [x for x in found if isinstance(x, int)]


def _batch(model: keras.Model) -> int:
    """How many examples a batch has: as many as the model is made for."""
    sizes = [x.shape[0] for x in getattr(model, "inputs", None) or () if x.shape]
    return next(filter(None, sizes), 1)


def _placeholder(
    tensor: nests.AnyTensor | tf.TensorSpec, batch: int, length: int
) -> tf.Tensor:
    shape = [batch, *(length if size is None else size for size in tensor.shape[1:])]
    return tf.compat.v1.placeholder(tensor.dtype, shape)
