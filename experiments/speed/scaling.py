"""How time, memory and graph of a step grow: parameters, batch, variables.

    python experiments/speed/scaling.py --output_dir=runs/scaling

Each case is a stack of square Dense layers without bias, bfloat16, Adam, in a process
of its own. scaling.md gets a table.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import subprocess
import sys
import time

from absl import app, flags

flags.DEFINE_string("output_dir", "runs/scaling", "Where scaling.md goes.")
flags.DEFINE_string("case", "", "For the program itself: width, layers, batch.")

# (width, layers, batch): parameters, then the batch, then the number of variables.
CASES = [
    *((width, 10, 32) for width in (100, 316, 1000, 3162)),
    *((512, 10, batch) for batch in (16, 64, 256, 1024)),
    *((width, count, 32) for width, count in ((320, 10), (96, 100), (32, 1000))),
    (24, 2000, 32),
]
HEADER = (
    "parameters", "variables", "batch", "ms/step", "ns/parameter",
    "us/variable", "MiB of a step", "MiB in all", "graph nodes/variable",
    "trace, s",
)  # fmt: skip


def measure(width: int, layers: int, batch: int) -> list[str]:
    """Returns a row of the table."""
    import keras
    import tensorflow as tf

    import mp_loop
    from mp_loop.bench import memory

    sys.setrecursionlimit(10**5)  # Keras walks a model by recursion
    used = memory.HostMemory()
    imported = used.held()
    inputs = x = keras.Input((width,))
    for _ in range(layers):
        x = keras.layers.Dense(width, use_bias=False)(x)
    model = keras.Model(inputs, keras.layers.Identity()(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    step = mp_loop.TrainStep(model, keras.optimizers.Adam(1e-4), loss, "bfloat16")
    data = tf.random.normal((batch, width)), tf.zeros(batch, tf.int32)
    started = time.perf_counter()
    nodes = len(step.graph(*data).as_graph_def().node)
    trace = time.perf_counter() - started
    step(*data)
    used.reset_peak()
    at_rest = used.held()
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        float(step(*data)["loss"])
        seconds.append(time.perf_counter() - started)
    second = statistics.median(seconds[2:])
    parameters = width * width * layers
    return [
        f"{parameters:,}",
        str(layers),
        str(batch),
        f"{second * 1e3:.3g}",
        f"{second * 1e9 / parameters:.3g}",
        f"{second * 1e6 / layers:.3g}",
        f"{(used.peak() - at_rest) / 2**20:.0f}",
        f"{(used.peak() - imported) / 2**20:.0f}",
        f"{nodes / layers:.1f}",
        f"{trace:.1f}",
    ]


def main(argv: list[str]) -> None:
    """Writes a row as soon as a case is done."""
    if flags.FLAGS.case:
        print(json.dumps(measure(*map(int, flags.FLAGS.case.split(",")))))
        return
    folder = pathlib.Path(flags.FLAGS.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "scaling.md", "w") as table:
        for row in (HEADER, ["---:"] * len(HEADER)):
            print(f"| {' | '.join(row)} |", file=table)
        for case in CASES:
            words = [sys.executable, argv[0], f"--case={','.join(map(str, case))}"]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            print(f"| {' | '.join(row)} |", file=table, flush=True)
            print(row, flush=True)


if __name__ == "__main__":
    app.run(main)
