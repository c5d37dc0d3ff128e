"""What a traced function computes, and in which dtype."""

import tensorflow as tf


def half_precision_sums(function, *arguments):
    """Operations that add up 16-bit numbers in a traced function."""
    # Products and the fused kernels accumulate in float32 by themselves.
    adds = (
        "AvgPool", "AvgPoolGrad", "BiasAddGrad", "Cumsum", "L2Loss", "LogSoftmax",
        "Mean", "Prod", "Softmax", "Sum", "UnsortedSegmentSum",
        "SparseSoftmaxCrossEntropyWithLogits", "AvgPool3D", "AvgPool3DGrad",
    )  # fmt: skip
    graphs = [function.get_concrete_function(*arguments).graph]
    found = []
    while graphs:
        graph = graphs.pop()
        graphs += [f.graph for f in graph._functions.values() if hasattr(f, "graph")]
        for op in needed(graph):
            halves = [t for t in op.inputs if t.dtype in (tf.float16, tf.bfloat16)]
            if op.type in adds and halves:
                found.append(f"{op.type} {op.name}")
    return found


def needed(graph):
    """The operations that the outputs depend on; TensorFlow prunes the rest."""
    left = [tensor.op for tensor in graph.outputs] + list(graph.control_outputs)
    seen = {}
    while left:
        op = left.pop()
        if op.name not in seen:
            seen[op.name] = op
            left += [tensor.op for tensor in op.inputs] + list(op.control_inputs)
    return seen.values()
