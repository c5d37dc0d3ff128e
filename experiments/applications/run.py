"""Trains two steps of every architecture of keras.applications in float16.

    python experiments/applications/run.py --output_dir=runs/applications

For each: it converts, two updates are made (an overflow may skip steps before),
masters are float32 and move, `model.save` and `load_model` give back the same
outputs bit for bit. The table says how much of it computes in 16 bits, and how far
its outputs and those of Keras' mixed_float16 are from float32's. Exit code 1 if an
architecture fails.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile
import time
from typing import Any

import architectures
import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import mp_loop
from mp_loop.data import batching, sources
from mp_loop.models import applications
from mp_loop.step import keras_step

flags.DEFINE_string("output_dir", "runs/applications", "Where table.md goes.")
flags.DEFINE_list("models", [], "Names; all of keras.applications if empty.")

BATCH = 16
STEPS = 32  # at most, until two updates are made: down to the smallest loss scale

HEADER = (
    "architecture",
    "image",
    "parameters",
    "16-bit parameters",
    "16-bit variables",
    "masters moved",
    "skipped",
    "largest relative difference",
    "of Keras",
    "seconds",
)


def main(argv: list[str]) -> None:
    """Writes a row as soon as an architecture is done."""
    del argv
    folder = pathlib.Path(flags.FLAGS.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    names = flags.FLAGS.models or sorted(applications.architectures())
    source = sources.load("fashion_mnist_mini")
    failed = []
    with open(folder / "table.md", "w") as table:
        for row in (HEADER, ["---"] + ["---:"] * (len(HEADER) - 1)):
            print(f"| {' | '.join(row)} |", file=table, flush=True)
        for name in names:
            try:
                row = try_out(name, source)
            except Exception as error:
                failed.append(name)
                row = [name, f"failed: {str(error).splitlines()[0]}"]
            line = f"| {' | '.join(row)} |"
            print(line, file=table, flush=True)
            print(line, flush=True)
            keras.backend.clear_session()
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


def try_out(name: str, source: sources.Source) -> list[str]:
    """Returns a row of the table.

    Raises:
      AssertionError: a check fails.
    """
    begun = time.monotonic()
    keras.utils.set_random_seed(0)
    model, size = architectures.build(name, source.num_classes)
    images, labels = next(iter(batching.training_batches(source, BATCH, 0, 0)))
    inputs = tf.image.grayscale_to_rgb(tf.image.resize(images, (size, size)))
    architectures.adapt(model, inputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    step = mp_loop.TrainStep(model, keras.optimizers.Adam(1e-4), loss, "float16")

    mixed = keras_step.under_policy(model, "mixed_float16")
    exact = model(inputs, training=False).numpy()
    ours, theirs = [
        np.max(np.abs(half(inputs, training=False) - exact)) / np.max(np.abs(exact))
        for half in (step.twin, mixed)
    ]

    before = [np.array(v) for v in step.master_weights]
    for _ in range(STEPS):
        step(inputs, labels)
        if int(step.state.applied_steps) == 2:
            break
    check(int(step.state.applied_steps) == 2, "two updates are made")
    check(
        all(v.dtype == tf.float32 for v in step.master_weights), "masters are float32"
    )
    after = [np.array(v) for v in step.master_weights]
    check(all(np.isfinite(v).all() for v in after), "masters stay finite")
    moved = [np.any(a != b) for a, b in zip(after, before, strict=True)]
    check(any(moved), "masters move")
    check_saving(model, inputs)

    halves = [w for w in step.working_weights if w.dtype == tf.float16]
    count = sum(int(tf.size(w)) for w in step.working_weights)
    half_count = sum(int(tf.size(w)) for w in halves)
    return [
        model.name,
        str(size),
        f"{count:,}",
        f"{half_count / count:.1%}",
        f"{len(halves) / len(before):.1%}",
        f"{np.mean(moved):.1%}",
        str(int(step.state.skipped_steps)),
        f"{ours:.1e}",
        f"{theirs:.1e}",
        f"{time.monotonic() - begun:.0f}",
    ]


def check_saving(model: keras.Model, inputs: Any) -> None:
    """Saves, loads and compares outputs bit for bit."""
    outputs = model(inputs, training=False).numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        loaded = keras.models.load_model(path)
    check(
        loaded(inputs, training=False).numpy().tobytes() == outputs.tobytes(),
        "saving gives back the same outputs",
    )


def check(holds: bool, what: str) -> None:
    """Raises AssertionError unless `holds`."""
    if not holds:
        raise AssertionError(f"failed: {what}")


if __name__ == "__main__":
    app.run(main)
