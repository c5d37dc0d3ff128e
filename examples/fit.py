"""Keras' own `fit`, in float16: `python examples/fit.py [EPOCHS]`.

One line is new. Callbacks, metrics, `class_weight`, `steps_per_execution` and the
saved model are Keras' own.
"""

import sys

import keras
import tensorflow as tf

import mp_loop
from mp_loop.data import batching, sources
from mp_loop.models import catalog


def main(epochs: int = 3) -> float:
    """Trains; returns the accuracy on the test images."""
    source = sources.load("fashion_mnist_mini")
    model = catalog.build("mlp", source.input_shape, source.num_classes, seed=0)

    model = mp_loop.for_fit(model, "float16")  # the new line

    model.compile(
        keras.optimizers.Adam(2e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=10,
    )
    history = model.fit(
        *everything(batching.training_batches(source, len(source.train), 0, 0)),
        batch_size=128,
        epochs=epochs,
        validation_data=everything(batching.evaluation_batches(source, 1000)),
        class_weight=dict.fromkeys(range(10), 1.0) | {6: 2.0},  # shirts are hard
        callbacks=[keras.callbacks.ReduceLROnPlateau(patience=1)],
        verbose=2,
    )
    return history.history["val_accuracy"][-1]


def everything(batches: tf.data.Dataset) -> tuple[tf.Tensor, tf.Tensor]:
    """The images and labels of a data set of one batch."""
    ((images, labels),) = batches
    return images, labels


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
