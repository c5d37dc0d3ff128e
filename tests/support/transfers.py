"""What a call sends between devices: read from the graphs that TensorFlow executed.

    found = in_loops(lambda: step.run(iterator, 3), "GPU:0")
    found       # [Transfer("while/body/_1/IteratorGetNext", tf.float32)]

TensorFlow cuts a function into one graph for each device, with a `_Send` and a `_Recv`
where a tensor crosses. In the graph of a GPU these copy memory of the GPU; what stays
on the host, such as the condition of a loop, is sent by `_HostSend`. No profiler and no
GPU is needed.
"""

import dataclasses

import tensorflow as tf
from tensorflow.python.eager import context


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A tensor that crosses in every iteration of a loop, and where it comes from."""

    name: str
    dtype: tf.DType


def in_loops(call, device, ignored=()):
    """Returns what crosses between a device and the others in the loops of a call.

    Args:
      call: runs a function for the first time, which is when its graphs are made.
      device: such as "GPU:0".
      ignored: dtypes that do not count.
    """
    graphs = context.context()
    graphs.enable_graph_collection()
    try:
        call()
        functions = graphs.export_run_metadata().function_graphs
    finally:
        graphs.disable_graph_collection()
    assert any("while/" in n.name for n in _nodes(functions)), "no loop was seen"
    found = []
    for function in functions:
        nodes = _nodes([function])
        signals = _signals(nodes)
        for node in nodes:
            here = node.op in ("_Send", "_Recv") and node.device.endswith(device)
            if here and "while/" in node.name and _key(node) not in signals:
                name = "T" if node.op == "_Send" else "tensor_type"
                dtype = tf.as_dtype(node.attr[name].type)
                if dtype not in ignored:
                    found.append(Transfer(node.name, dtype))
    return found


def _nodes(functions):
    return [
        node
        for function in functions
        for part in function.partition_graphs
        for node in part.node
    ]


def _key(node):
    return node.attr["tensor_name"].s


def _signals(nodes):
    """The tensors that say that an operation is over: constants without elements."""
    empty = {
        node.name
        for node in nodes
        if node.op == "Const"
        and any(dim.size == 0 for dim in node.attr["value"].tensor.tensor_shape.dim)
    }
    return {
        _key(node)
        for node in nodes
        if node.op in ("_Send", "_HostSend") and node.input[0].split(":")[0] in empty
    }
