"""Averaged weights in float16 training: `python examples/ema.py [EPOCHS]`.

The averages of the float32 masters are float32 too: with a decay of 0.98 they move by
less than a 16-bit weight could. A skipped step moves nothing.

(Keras' own way works too: `keras.optimizers.Adam(use_ema=True)`, and
`optimizer.finalize_variable_values(model.trainable_variables)` at the end.)
"""

import sys

import keras
import tensorflow as tf

import mp_loop
from mp_loop.data import batching, sources
from mp_loop.models import catalog

DECAY = 0.98


def main(epochs: int = 3) -> tuple[float, float]:
    """Trains; returns the accuracy of the last weights and of the averaged ones."""
    source = sources.load("fashion_mnist_mini")
    model = catalog.build("mlp", source.input_shape, source.num_classes, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    step = mp_loop.TrainStep(model, keras.optimizers.Adam(2e-3), loss)
    averages = [tf.Variable(weight) for weight in step.master_weights]

    @tf.function
    def train(images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        metrics = step(images, labels)
        decay = tf.where(metrics["grads_finite"], DECAY, 1.0)
        for average, weight in zip(averages, step.master_weights, strict=True):
            average.assign(decay * average + (1.0 - decay) * weight)
        return metrics

    for epoch in range(epochs):
        for images, labels in batching.training_batches(source, 128, 0, epoch):
            metrics = train(images, labels)
        print(f"epoch {epoch + 1}: loss {metrics['loss']:.3f}")

    evaluate = mp_loop.EvalStep(model, loss, "sparse_categorical_accuracy")
    test = batching.evaluation_batches(source, 500)
    last = evaluate(test)["eval_accuracy"]
    for average, weight in zip(averages, step.master_weights, strict=True):
        weight.assign(average)  # then `step.reload()`, if training goes on
    averaged = evaluate(test)["eval_accuracy"]
    print(f"accuracy of the last weights {last:.3f}, averaged {averaged:.3f}")
    return last, averaged


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
