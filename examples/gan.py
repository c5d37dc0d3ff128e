"""A GAN in float16: `python examples/gan.py [STEPS]`.

Two models, two losses, two optimizers and two loss scales: two `TrainStep`s in one
loop. The second one trains the generator through the discriminator, which is frozen
there; `reload` tells it that the discriminator has changed.
"""

import sys

import keras
import numpy as np
import tensorflow as tf

import mp_loop
from mp_loop.data import sources

BATCH, NOISE = 64, 32
layers = keras.layers


def make_generator() -> keras.Model:
    """Noise [n, 32] to images [n, 28, 28, 1] in (-1, 1)."""
    return keras.Sequential(
        [
            keras.Input((NOISE,)),
            layers.Dense(7 * 7 * 32, activation="relu"),
            layers.Reshape((7, 7, 32)),
            layers.Conv2DTranspose(16, 4, 2, padding="same", activation="relu"),
            layers.Conv2DTranspose(1, 4, 2, padding="same", activation="tanh"),
        ]
    )


def make_discriminator() -> keras.Model:
    """Images to the logit of being real."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 4, 2, padding="same", activation="leaky_relu"),
            layers.Conv2D(32, 4, 2, padding="same", activation="leaky_relu"),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )


def main(steps: int = 600) -> tuple[float, float]:
    """Trains; returns the distance of fakes from real images, before and after."""
    keras.utils.set_random_seed(0)
    generator, discriminator = make_generator(), make_discriminator()
    loss = keras.losses.BinaryCrossentropy(from_logits=True)

    discriminator_step = mp_loop.TrainStep(
        discriminator, keras.optimizers.Adam(2e-4, 0.5), loss
    )
    discriminator.trainable = False  # frozen inside the other step
    both = keras.Sequential([generator, discriminator])
    generator_step = mp_loop.TrainStep(both, keras.optimizers.Adam(2e-3, 0.5), loss)
    discriminator.trainable = True

    real, fake = tf.ones([BATCH, 1]), tf.zeros([BATCH, 1])

    @tf.function
    def train(images: tf.Tensor) -> tuple[dict, dict]:
        noise = tf.random.normal([BATCH, NOISE])
        fakes = generator_step.twin.layers[0](noise)
        fakes = tf.cast(fakes, tf.float32)  # 16 bits -> float32
        metrics = discriminator_step(
            tf.concat([images, fakes], 0), tf.concat([real, fake], 0)
        )
        generator_step.reload()  # the discriminator has changed
        return metrics, generator_step(noise, real)

    images = sources.load("fashion_mnist_mini").train.inputs / np.float32(127.5) - 1.0
    before = distance(generator, images)
    batches = tf.data.Dataset.from_tensor_slices(images)
    batches = batches.shuffle(len(images), seed=0).repeat().batch(BATCH)
    for step, batch in enumerate(batches.take(steps), start=1):
        discriminated, generated = train(batch)
        if step % 100 == 0:
            print(
                f"step {step}: discriminator {discriminated['loss']:.3f} (scale "
                f"{discriminated['loss_scale']:g}), generator "
                f"{generated['loss']:.3f} (scale {generated['loss_scale']:g})"
            )
    after = distance(generator, images)
    print(f"distance of fakes from real images: {before:.3f}, now {after:.3f}")
    return before, after


def distance(generator: keras.Model, images: np.ndarray) -> float:
    """How much mean and deviation of the pixels differ between fake and real."""
    noise = np.random.default_rng(0).normal(size=(1000, NOISE)).astype(np.float32)
    fakes = generator(noise).numpy()
    means = np.abs(fakes.mean(0) - images.mean(0)).mean()
    deviations = np.abs(fakes.std(0) - images.std(0)).mean()
    return float(means + deviations)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
