"""A function of 16-bit tensors, traced in float32 and emitted again."""

import tensorflow as tf

from mp_loop.operations import calls, emission


def step(function, shape, variables, **options):
    """A traced function of the outputs and the gradients of a function.

    What is before the operation "end" belongs to the forward pass. The options are
    those of `Emission`.
    """
    how = emission.Emission(tf.bfloat16, **options)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec(shape, tf.bfloat16)])
    def compute(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            trace = calls.trace(function, x, how.narrow, variables)
            y = tf.cast(trace.emit(how), tf.float32)
            loss = tf.reduce_sum(tf.identity(y, "end") ** 2)
        found = tape.gradient(loss, [x, *variables], unconnected_gradients="zero")
        return y, found

    return compute


def kept(graph, size):
    """Names of floats of `size` numbers or more that are made before, used after."""
    backward = set()
    after = graph.get_operation_by_name("end")
    for op in graph.get_operations():
        before = [tensor.op for tensor in op.inputs] + list(op.control_inputs)
        if op is after or any(one.name in backward for one in before):
            backward.add(op.name)
    return [
        tensor.name
        for op in graph.get_operations()
        if op.name not in backward
        for tensor in op.outputs
        if tensor.dtype.is_floating
        and (tensor.shape.num_elements() or 0) >= size
        and any(reader.name in backward for reader in tensor.consumers())
    ]
