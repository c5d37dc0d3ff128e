"""What each all-reduce of a step waits for, in a cluster of two processes.

    python experiments/many_devices/overlap.py

Prints, for the step without XLA and under it, a line for each collective operation: the
numbers it adds up, and how many of the backward pass's products come before it.
"""

import json
import os
import socket
import subprocess
import sys
from typing import Any

WIDTH = 1024  # 4 MiB of float32 weights in each of eight layers


def ancestors(operation: Any) -> set[str]:
    """Names of all that an operation waits for."""
    found, left = set(), [operation]
    while left:
        one = left.pop()
        for other in [*(x.op for x in one.inputs), *one.control_inputs]:
            if other.name not in found:
                found.add(other.name)
                left.append(other)
    return found


def trace(jit_compile: bool) -> list[str]:
    """Describes the collective operations of a step, in this worker."""
    import keras
    import tensorflow as tf

    from mp_loop.distributed import strategies

    strategy = strategies.make("multi_worker")
    import mp_loop

    with strategy.scope():
        layers = [keras.layers.Dense(WIDTH, activation="relu") for _ in range(8)]
        step = mp_loop.TrainStep(
            keras.Sequential([keras.Input((WIDTH,)), *layers, keras.layers.Dense(10)]),
            keras.optimizers.SGD(0.01),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "float32",
            jit_compile=jit_compile,
        )
    batch = tf.TensorSpec((64, WIDTH)), tf.TensorSpec((64,), tf.int64)
    operations = step.graph(*batch).get_operations()
    kinds = ("MatMul", "StatefulPartitionedCall")
    products = {op.name for op in operations if op.type in kinds}
    return [
        f"{op.inputs[0].shape.num_elements():>8} numbers, after "
        f"{len(ancestors(op) & products)} of {len(products)} products and calls"
        for op in operations
        if op.type.startswith("CollectiveReduce")
    ]


def main() -> None:
    """Starts both workers, twice."""
    for jit_compile in (False, True):
        print("under XLA" if jit_compile else "without XLA", flush=True)
        servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in servers]
        for server in servers:
            server.close()
        workers = []
        for index in range(2):
            task = {"type": "worker", "index": index}
            cluster = {"cluster": {"worker": addresses}, "task": task}
            workers.append(
                subprocess.Popen(
                    [sys.executable, __file__, str(int(jit_compile)), str(index)],
                    env={**os.environ, "TF_CONFIG": json.dumps(cluster)},
                    stderr=subprocess.DEVNULL,
                )
            )
        for worker in workers:
            worker.wait()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        lines = trace(bool(int(sys.argv[1])))
        if sys.argv[2] == "0":
            print("\n".join(lines), flush=True)
