"""What a traced function computes below float32 and should not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from mp_loop.config import choices
from mp_loop.operations import nodes, rules

# They add up numbers, or compute of one what 16 bits show badly: exponentials,
# logarithms, powers. Products and fused kernels accumulate in float32 by themselves.
_SUMS = (
    "AvgPool", "AvgPool3D", "AvgPool3DGrad", "AvgPoolGrad", "BiasAddGrad", "Cumprod",
    "Cumsum", "CumulativeLogsumexp", "EuclideanNorm", "L2Loss", "LRN", "LogSoftmax",
    "Mean", "Prod", "ScatterNd", "SegmentMean", "SegmentSum", "SegmentSumV2", "Softmax",
    "SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits", "Sum",
    "TensorScatterAdd", "UnsortedSegmentSum",
)  # fmt: skip
_SINGLE = (
    "Acosh", "Asinh", "Atanh", "Cosh", "Digamma", "Elu", "EluGrad", "Erf", "Erfc",
    "Erfinv", "Exp", "Expm1", "Lgamma", "Log", "Log1p", "Ndtri", "Pow", "Rsqrt",
    "RsqrtGrad", "Selu", "SeluGrad", "Sigmoid", "SigmoidGrad", "Sinh", "Softplus",
    "SoftplusGrad", "Sqrt", "SqrtGrad", "SquaredDifference", "Tanh", "TanhGrad",
    "Xdivy", "Xlog1py", "Xlogy",
)  # fmt: skip


def half_precision_sums(function: Any, *arguments: Any) -> list[str]:
    """Finds what runs in 16 bits and belongs in float32.

    Args:
      function: a `tf.function`; its gradients count if it computes them.
      *arguments: what it takes.

    Returns:
      Type and name of each softmax, exponential, logarithm, power, norm, reduction,
      cumulative sum or loss that reads 16-bit numbers, and of what a loop adds up in
      16 bits; in functions inside too.
    """
    graphs = [function.get_concrete_function(*arguments).graph]
    found = []
    while graphs:
        graph = graphs.pop()
        graphs += [f.graph for f in graph._functions.values() if hasattr(f, "graph")]
        for op in needed(graph):
            halves = [t for t in op.inputs if t.dtype.name in choices.HALF_PRECISIONS]
            sums_up = op.type == "Einsum" and not rules.contracts(op) and _reduces(op)
            if halves and (op.type in (*_SUMS, *_SINGLE) or sums_up):
                found.append(f"{op.type} {op.name}")
            if op.type.endswith("While"):
                found += _added_up_in(op)
    return found


def _added_up_in(loop: tf.Operation) -> list[str]:
    """What a loop adds to in every turn, in 16 bits: a gradient of what it reads, say.

    Args:
      loop: an operation.
    """
    body = nodes.function(loop.graph, loop.get_attr("body").name)
    found = []
    for tensor in body.outputs:
        while tensor.op.type == "Identity":
            tensor = tensor.op.inputs[0]
        half = tensor.dtype.name in choices.HALF_PRECISIONS
        if half and tensor.op.type in ("Add", "AddN", "AddV2"):
            found.append(f"{tensor.op.type} {tensor.op.name}")
    return found


def needed(graph: tf.Graph) -> Iterable[tf.Operation]:
    """The operations that the outputs depend on; TensorFlow prunes the rest."""
    left = [tensor.op for tensor in graph.outputs] + list(graph.control_outputs)
    seen = {}
    while left:
        op = left.pop()
        if op.name not in seen:
            seen[op.name] = op
            left += [tensor.op for tensor in op.inputs] + list(op.control_inputs)
    return seen.values()


def _reduces(einsum: tf.Operation) -> bool:
    """Tells whether an einsum adds up numbers along a label."""
    left, _, right = einsum.get_attr("equation").decode().partition("->")
    return any(label.isalpha() and label not in right for label in left)
