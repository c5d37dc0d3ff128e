"""How far from float64: our default arithmetic and Keras', after one step.

    python experiments/arithmetic/run.py --output_dir=runs/arithmetic

On a CPU with AVX512-FP16 set TF_ENABLE_ONEDNN_OPTS=0 for --precisions=float16:
oneDNN takes Keras' convolutions of that type on its reference code.

From the same float32 weights and on the same real batches, one step of plain SGD
with rate 1 is taken in float64, by `TrainStep` and by Keras' mixed precision. What
the weights moved by is the gradient. Errors are relative to float64's, in the
Euclidean norm over all weights together, averaged over the batches.
"""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import mp_loop
from mp_loop.data import batching, sources
from mp_loop.models import catalog
from mp_loop.step import keras_step

flags.DEFINE_string("output_dir", "runs/arithmetic", "Where table.md goes.")
flags.DEFINE_list("models", ["mlp", "cnn", "resnet20", "vit_tiny"], "Which models.")
flags.DEFINE_list("precisions", ["float16", "bfloat16"], "Which precisions.")
flags.DEFINE_integer("batch_size", 64, "Examples in a batch.", lower_bound=1)
flags.DEFINE_integer("batches", 16, "Batches averaged over.", lower_bound=1)

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SCALE = 2.0**10
MEASURES = ("loss", "gradient", "bias gradient", "statistics")


def main(argv: list[str]) -> None:
    """Prints and writes the table."""
    del argv
    folder = pathlib.Path(flags.FLAGS.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "| model | precision | error of the | mp_loop | Keras | ratio |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    source = sources.load("fashion_mnist_mini")
    for name in flags.FLAGS.models:
        for precision in flags.FLAGS.precisions:
            errors = compare(name, precision, source)
            for measure, (ours, theirs) in errors.items():
                cells = [name, precision, measure, f"{ours:.2e}", f"{theirs:.2e}"]
                lines.append(f"| {' | '.join(cells)} | {ours / theirs:.2f} |")
                print(lines[-1], flush=True)
    (folder / "table.md").write_text("\n".join(lines) + "\n")


def compare(
    name: str, precision: str, source: sources.Source
) -> dict[str, tuple[float, float]]:
    """Returns mean errors (of mp_loop, of Keras) for each measure."""
    rule = mp_loop.StaticLossScale(SCALE)
    exact = Reference(build(name, source))
    ours = mp_loop.TrainStep(build(name, source), sgd(), LOSS, precision, rule)
    theirs = keras_step.KerasStep(
        build(name, source), sgd(), LOSS, precision, initial_scale=SCALE
    )
    starts = {id(step): read(step) for step in (ours, theirs)}
    errors = []
    batches = batching.training_batches(source, flags.FLAGS.batch_size, 0, 0)
    for batch in batches.take(flags.FLAGS.batches):
        wanted = exact(*batch)
        found = [moved(step, batch, starts[id(step)]) for step in (ours, theirs)]
        measures = [m for m in MEASURES if np.size(wanted[m])]
        errors.append([[distance(f[m], wanted[m]) for f in found] for m in measures])
    return dict(zip(measures, np.mean(errors, axis=0).tolist(), strict=True))


def build(name: str, source: sources.Source) -> keras.Model:
    """Returns the model; its dropout, if any, off."""
    model = catalog.build(name, source.input_shape, source.num_classes)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return model


def sgd() -> keras.optimizers.Optimizer:
    """An update that is the gradient."""
    return keras.optimizers.SGD(1.0)


def moved(
    step: Any, batch: tuple[tf.Tensor, tf.Tensor], start: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """Takes one step from the start; returns what `Reference` does."""
    for variable, value in zip(variables(step), start, strict=True):
        variable.assign(value)
    if isinstance(step, mp_loop.TrainStep):
        step.reload()
    metrics = step(*batch)
    assert metrics["grads_finite"]
    masters = step.state.master_weights
    grads = [
        before - after.numpy()
        for before, after in zip(start[: len(masters)], masters, strict=True)
    ]
    return found(metrics["loss"], grads, step.state.other_weights)


def variables(step: Any) -> list[tf.Variable]:
    """Returns what a step moves."""
    return [*step.state.master_weights, *step.state.other_weights]


def read(step: Any) -> list[np.ndarray]:
    """Returns the content of `variables`."""
    return [np.array(v) for v in variables(step)]


class Reference:
    """The loss, the gradients and the new statistics in float64."""

    def __init__(self, model: keras.Model):
        """Copies the model; its last layer computes in float32."""
        self._model = keras_step.under_policy(model, "float64")
        self._trained = [v.value for v in self._model.trainable_variables]
        self._others = [v.value for v in self._model.non_trainable_weights]
        self._start = [v.numpy() for v in self._others]
        self._grads = tf.function(self._one_batch)

    def __call__(self, inputs: tf.Tensor, labels: tf.Tensor) -> dict[str, np.ndarray]:
        """Returns each measure of one batch."""
        for variable, value in zip(self._others, self._start, strict=True):
            variable.assign(value)
        loss, grads = self._grads(inputs, labels)
        return found(loss, grads, self._others)

    def _one_batch(self, inputs: tf.Tensor, labels: tf.Tensor) -> tuple:
        with tf.GradientTape() as tape:
            outputs = self._model(tf.cast(inputs, tf.float64), training=True)
            loss = LOSS(labels, tf.cast(outputs, tf.float64))
        return loss, tape.gradient(loss, self._trained)


def found(loss: Any, grads: Any, statistics: Any) -> dict[str, np.ndarray]:
    """Puts the measures together."""
    grads = [np.asarray(tf.convert_to_tensor(g)) for g in grads]
    return {
        "loss": flat([loss]),
        "gradient": flat(grads),
        "bias gradient": flat([g for g in grads if g.ndim == 1]),
        "statistics": flat(statistics),
    }


def flat(arrays: Any) -> np.ndarray:
    """Returns all numbers in one float64 vector."""
    return np.concatenate([np.zeros(0), *[np.ravel(a).astype(float) for a in arrays]])


def distance(found: np.ndarray, exact: np.ndarray) -> float:
    """Returns the relative error in the Euclidean norm."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


if __name__ == "__main__":
    app.run(main)
