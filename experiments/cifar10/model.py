"""The network of Jordan 2024, *94% on CIFAR-10 in 3.29 Seconds* (arXiv 2404.00498).

Six convolutions that start as identities behind one that whitens patches of 2 x 2
pixels and is not trained. Biases behind batch norm learn at 64 times the rate. At
inference an image is seen in six views, whose logits are averaged.
"""

import json
import pathlib
from typing import Any

import keras
import numpy as np

ops = keras.ops

WIDTHS = (64, 256, 256)
# Of 2 x 2 patches of standardized training images; `python -m
# experiments.cifar10.patches` writes it.
COVARIANCE = pathlib.Path(__file__).parent / "patch_covariance.json"


@keras.saving.register_keras_serializable("cifar10")
class Views(keras.layers.Layer):
    """Stacks six views at inference: [b, h, w, c] to [6 b, h, w, c].

    The image, and it moved by a pixel up and left and down and right, what moves in
    being the neighbor's reflection; each as it is and mirrored.
    """

    def call(self, images: Any, training: bool = False) -> Any:
        """Returns `images` themselves in training."""
        if training:
            return images
        height, width = images.shape[1:3]
        border = [[0, 0], [1, 1], [1, 1], [0, 0]]
        padded = ops.pad(images, border, mode="reflect")
        moved = [padded[:, at : at + height, at : at + width] for at in (1, 0, 2)]
        views = ops.concatenate(moved, axis=0)
        return ops.concatenate([views, ops.flip(views, axis=2)], axis=0)


@keras.saving.register_keras_serializable("cifar10")
class MeanOfViews(keras.layers.Layer):
    """Averages the logits of `Views`: the images' count half, the four others' half."""

    def call(self, logits: Any, training: bool = False) -> Any:
        """Takes [6 b, classes] and returns [b, classes]; in training, `logits`."""
        if training:
            return logits
        plain, mirrored = ops.split(logits, 2, axis=0)
        image, first, second = ops.split(0.5 * (plain + mirrored), 3, axis=0)
        return 0.5 * image + 0.25 * (first + second)


@keras.saving.register_keras_serializable("cifar10")
class Bias(keras.layers.Layer):
    """Adds a multiple of a weight: SGD moves the sum by the square of `multiple`."""

    def __init__(self, multiple: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.multiple = multiple

    def build(self, shape: tuple[int, ...]) -> None:
        """Makes the weight, float32 [channels]."""
        self.part = self.add_weight(name="part", shape=shape[-1:], initializer="zeros")

    def call(self, x: Any) -> Any:
        """Returns `x`, [..., channels], with the bias added."""
        return x + self.multiple * self.part

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "multiple": self.multiple}


@keras.saving.register_keras_serializable("cifar10")
class Identity(keras.initializers.Initializer):
    """Kernels whose first outputs are their inputs; the others are drawn.

    `keras.initializers.IdentityInitializer` is for matrices alone.
    """

    def __call__(self, shape: tuple[int, ...], dtype: Any = None, **_: Any) -> Any:
        """Returns a kernel [height, width, inputs, outputs]."""
        height, width, inputs, outputs = shape
        kernel = np.array(_uniform()(shape))
        same = np.arange(min(inputs, outputs))
        kernel[..., same] = 0
        kernel[height // 2, width // 2, same, same] = 1
        return ops.convert_to_tensor(kernel, dtype)


def network(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Returns a float32 model of standardized images that ends in logits."""
    inputs = keras.Input(input_shape)
    whiten = keras.layers.Conv2D(24, 2, use_bias=False, trainable=False)
    x = whiten(Views()(inputs))
    whiten.set_weights([_whitening()])
    x = keras.layers.Activation("gelu")(Bias()(x))
    for width in WIDTHS:
        x = keras.layers.MaxPooling2D(2)(_convolution(x, width))
        x = _convolution(_normalized(x), width)
        x = _normalized(x)
    x = keras.layers.GlobalMaxPooling2D()(x)
    head = keras.layers.Dense(
        num_classes, use_bias=False, kernel_initializer=_uniform(), name="logits"
    )
    logits = keras.layers.Rescaling(1 / 9)(head(x))
    return keras.Model(inputs, MeanOfViews()(logits))


def _convolution(x: Any, width: int) -> Any:
    return keras.layers.Conv2D(
        width, 3, padding="same", use_bias=False, kernel_initializer=Identity()
    )(x)


def _normalized(x: Any) -> Any:
    norm = keras.layers.BatchNormalization(
        momentum=0.6, epsilon=1e-12, center=False, scale=False
    )
    return keras.layers.Activation("gelu")(Bias(8)(norm(x)))


def _uniform() -> keras.initializers.Initializer:
    """Between plus and minus one over the root of the number of inputs."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


def _whitening() -> np.ndarray:
    """Returns the kernel [2, 2, 3, 24]: principal parts of variance 1, and minus."""
    values, vectors = np.linalg.eigh(np.array(json.loads(COVARIANCE.read_text())))
    parts = vectors / np.sqrt(values + 5e-4)
    return np.concatenate([parts, -parts], axis=1).reshape(2, 2, 3, 24)
