"""A loop of your own from pure parts: `python examples/pure_parts.py`.

The twin, the casts, the scale and the skip are written out; the update is gradient
descent. Nothing else of mp_loop is used.
"""

import sys

import keras
import tensorflow as tf

import mp_loop
from mp_loop.data import batching, sources
from mp_loop.models import catalog

RATE = 0.1


def main(epochs: int = 2, rule: mp_loop.DynamicLossScale | None = None) -> tuple:
    """Trains; returns the model and the number of skipped steps."""
    source = sources.load("fashion_mnist_mini")
    model = catalog.build("mlp", source.input_shape, source.num_classes, seed=0)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    twin = mp_loop.half_precision_twin(model, "float16")
    masters = [variable.value for variable in model.trainable_variables]
    workings = [variable.value for variable in twin.trainable_variables]
    rule = rule or mp_loop.DynamicLossScale(growth_interval=50)
    scale_state = [tf.Variable(value) for value in rule.init()]

    @tf.function
    def train(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        state = mp_loop.LossScaleState(*(v.read_value() for v in scale_state))
        with tf.GradientTape() as tape:
            logits = tf.cast(twin(images, training=True), tf.float32)
            loss = loss_of(labels, logits)  # float32
            scaled_loss = loss * state.scale
        scaled_grads = tape.gradient(scaled_loss, workings)  # 16 bits
        grads = [tf.cast(g, tf.float32) / state.scale for g in scaled_grads]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in grads])

        for master, working, grad in zip(masters, workings, grads, strict=True):
            master.assign_sub(tf.where(finite, RATE * grad, 0.0))  # or nothing
            if working is not master:  # some weights stay float32, and are shared
                working.assign(tf.cast(master, working.dtype))  # float32 -> 16 bits
        for variable, value in zip(
            scale_state, rule.next_state(state, finite), strict=True
        ):
            variable.assign(value)
        return loss, finite, state.scale

    skipped = 0
    for epoch in range(epochs):
        for images, labels in batching.training_batches(source, 128, 0, epoch):
            loss, finite, scale = train(images, labels)
            skipped += not finite
        print(f"epoch {epoch + 1}: loss {loss:.3f}, scale {scale:g}")
    return model, skipped


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
