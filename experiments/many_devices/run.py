"""What a float16 all-reduce does to a gradient.

    python experiments/many_devices/run.py

The CNN's first batches of Fashion-MNIST, cut into the shares of 2, 4, 8, ...
replicas. Each share's scaled gradients are what a replica sends; they are added
in a ring, as NCCL does, in float32 and in float16, and compared with their
float64 sum. Norms are over all float16 weights of the model.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from mp_loop.data import batching, sources
from mp_loop.models import catalog
from mp_loop.step import train_step

BATCH, BATCHES, SCALE = 128, 8, 2.0**15


def ring_sum(parts: np.ndarray, dtype: type) -> np.ndarray:
    """Adds arrays [replicas, n] up one after the other, rounding each sum."""
    total = parts[0].astype(dtype)
    for part in parts[1:]:
        total = (total + part.astype(dtype)).astype(dtype)
    return total.astype(np.float64)


def main() -> None:
    """Prints a row for each number of replicas."""
    source = sources.load("fashion_mnist_mini")
    model = catalog.build("cnn", source.input_shape, source.num_classes, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    step = train_step.TrainStep(model, keras.optimizers.SGD(0.1), loss, "float16")
    half = [w.dtype == tf.float16 for w in step.working_weights]
    batches = list(batching.training_batches(source, BATCH, 0, 0).take(BATCHES))

    @tf.function(reduce_retracing=True)
    def grads(inputs: tf.Tensor, labels: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        _, found, _ = step.gradients((inputs, labels, None), scale)
        kept = [g for g, is_half in zip(found, half, strict=True) if is_half]
        return tf.concat([tf.reshape(g, [-1]) for g in kept], 0)

    print("| replicas | float32 | float16 | one float16 rounding of the sum |")
    print("| --- | --- | --- | --- |")
    for replicas in (2, 4, 8, 16, 32, 64):
        errors = []
        for inputs, labels in batches:
            rows = BATCH // replicas
            shares = [slice(i * rows, (i + 1) * rows) for i in range(replicas)]
            scale = tf.constant(SCALE / replicas)
            parts = np.stack(
                [grads(inputs[s], labels[s], scale).numpy() for s in shares]
            )
            exact = parts.astype(np.float64).sum(0)
            sums = [
                ring_sum(parts, np.float32),
                ring_sum(parts, np.float16),
                exact.astype(np.float16).astype(np.float64),
            ]
            norm = np.linalg.norm(exact)
            errors.append([np.linalg.norm(s - exact) / norm for s in sums])
        means = np.mean(errors, 0)
        print(f"| {replicas} | " + " | ".join(f"{e:.1e}" for e in means) + " |")


if __name__ == "__main__":
    main()
