"""A gradient penalty in float16: `python examples/gradient_penalty.py`.

The loss contains the gradient of the model with respect to its inputs, so the backward
pass goes through a backward pass. The model below returns both; the same class makes
the float32 model and its 16-bit twin. The inner gradient is that of a sum, not of a
mean: the gradient of each example keeps its size and needs no scale of its own.
"""

import sys

import keras
import tensorflow as tf

import mp_loop
from mp_loop.data import batching, sources
from mp_loop.models import catalog


class WithInputGradient(keras.Model):
    """Returns logits and the gradient of the largest one by the inputs."""

    def __init__(self, classifier: keras.Model):
        super().__init__()
        self.classifier = classifier

    def call(self, images: tf.Tensor, training: bool = False) -> tuple:
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = tf.cast(self.classifier(images, training=training), tf.float32)
            largest = tf.reduce_sum(tf.reduce_max(logits, axis=-1))
        return logits, tape.gradient(largest, images)


def main(penalty: float = 0.1, epochs: int = 3) -> tuple[float, float]:
    """Trains; returns accuracy and mean squared input gradient on the test images."""
    source = sources.load("fashion_mnist_mini")
    mlp = catalog.build("mlp", source.input_shape, source.num_classes, seed=0)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def squared_norm(gradients: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.reduce_sum(tf.square(gradients), axis=(1, 2, 3)))

    def loss(labels: tf.Tensor, outputs: tuple) -> tf.Tensor:
        logits, gradients = outputs
        return cross_entropy(labels, logits) + penalty * squared_norm(gradients)

    step = mp_loop.TrainStep(
        WithInputGradient(mlp),
        keras.optimizers.Adam(2e-3),
        loss,
        twin=WithInputGradient(mp_loop.half_precision_twin(mlp, "float16")),
    )
    for epoch in range(epochs):
        for images, labels in batching.training_batches(source, 128, 0, epoch):
            metrics = step(images, labels)
        print(
            f"epoch {epoch + 1}: loss {metrics['loss']:.3f}, scale "
            f"{metrics['loss_scale']:g}, skipped {int(step.state.skipped_steps)}"
        )

    ((images, labels),) = batching.evaluation_batches(source, len(source.test))
    logits, gradients = step.model(images)
    hits = keras.metrics.sparse_categorical_accuracy(labels, logits)
    accuracy, norm = float(tf.reduce_mean(hits)), float(squared_norm(gradients))
    print(f"penalty {penalty:g}: accuracy {accuracy:.3f}, gradient {norm:.3f}")
    return accuracy, norm


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]))
