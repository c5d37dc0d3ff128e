"""The project's own networks for images, as functions of (input_shape, num_classes).

All of them are float32 Keras models from [batch, h, w, c] to logits, [batch,
num_classes], of `PER_PIXEL` [batch, h, w, num_classes].
"""

from __future__ import annotations

import keras

from mp_loop.distributed import nests
from mp_loop.models import heads


def mlp(input_shape: heads.Shape, num_classes: int) -> keras.Model:
    """Two hidden layers of 256, for images or rows of numbers."""
    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.Flatten()(inputs)
    for _ in range(2):
        x = keras.layers.Dense(256, activation="relu")(x)
    return keras.Model(inputs, heads.logits(x, num_classes), name="mlp")


def cnn(input_shape: heads.Shape, num_classes: int) -> keras.Model:
    """Three stages of 3x3 convolutions with batch norm."""
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn(inputs, 32)
    for width in (64, 128):
        x = keras.layers.MaxPooling2D(2, padding="same")(x)
        x = _conv_bn(_conv_bn(x, width), width)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, heads.logits(x, num_classes), name="cnn")


def resnet9(input_shape: heads.Shape, num_classes: int) -> keras.Model:
    """Page's residual network for short trainings (DAWNBench 2018), half as wide.

    Eight 3x3 convolutions and the logits. The image is halved after the second, fifth
    and sixth; the second and the sixth are followed by a residual block of two
    convolutions. The logits are computed from the maximum over the image.
    """

    def residual(x, width: int):
        return keras.layers.Add()([x, _conv_bn(_conv_bn(x, width), width)])

    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn(inputs, 32)
    for width in (64, 128, 256):
        x = keras.layers.MaxPooling2D(2, padding="same")(_conv_bn(x, width))
        if width != 128:
            x = residual(x, width)
    x = keras.layers.GlobalMaxPooling2D()(x)
    return keras.Model(inputs, heads.logits(x, num_classes), name="resnet9")


def resnet(depth: int) -> heads.Maker:
    """The CIFAR network of He et al. 2016 (section 4.2), with projection shortcuts.

    A 3x3 convolution to 16 channels, three stages of n = (depth - 2) / 6 blocks of
    two 3x3 convolutions with 16, 32 and 64 channels, and the mean over the image. The
    second and the third stage halve the image.

    Args:
      depth: 6n + 2, n >= 1.
    """

    def make(input_shape: heads.Shape, num_classes: int) -> keras.Model:
        inputs = keras.Input(input_shape, name="image")
        x = _conv_bn(inputs, 16)
        for stage, width in enumerate((16, 32, 64)):
            for block in range((depth - 2) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                y = _conv_bn(x, width, stride=stride)
                y = _conv_bn(y, width, relu=False)
                if stride != 1:
                    x = _conv_bn(x, width, size=1, stride=stride, relu=False)
                x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, heads.logits(x, num_classes), name=f"resnet{depth}")

    return make


def vit_tiny(input_shape: heads.Shape, num_classes: int) -> keras.Model:
    """Dosovitskiy et al. 2021, small: 4x4 patches, width 64, 4 blocks, 4 heads.

    The mean over positions replaces the class token. There is no dropout. The
    convolution pads an image whose sides are not multiples of 4.
    """
    width, attention_heads = 64, 4
    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.Conv2D(width, 4, strides=4, padding="same")(inputs)
    x = keras.layers.Reshape((-1, width))(x)
    x = PositionEmbedding()(x)
    for _ in range(4):
        x = encoder_block(x, width, attention_heads)
    x = keras.layers.LayerNormalization(epsilon=1e-6)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, heads.logits(x, num_classes), name="vit_tiny")


def encoder_block(
    x: keras.KerasTensor, width: int, attention_heads: int
) -> keras.KerasTensor:
    """A pre-norm block of a Transformer encoder (Xiong et al. 2020).

    Args:
      x: [batch, positions, width].
      width: a multiple of `attention_heads`.
      attention_heads: their number.
    """
    y = keras.layers.LayerNormalization(epsilon=1e-6)(x)
    y = keras.layers.MultiHeadAttention(attention_heads, width // attention_heads)(y, y)
    x = keras.layers.Add()([x, y])
    y = keras.layers.LayerNormalization(epsilon=1e-6)(x)
    y = keras.layers.Dense(4 * width, activation="gelu")(y)
    return keras.layers.Add()([x, keras.layers.Dense(width)(y)])


@keras.saving.register_keras_serializable("mp_loop", "PositionEmbedding")
class PositionEmbedding(keras.layers.Layer):
    """Adds one learned vector to each position of [batch, positions, width]."""

    def build(self, input_shape: heads.Shape) -> None:
        self.embedding = self.add_weight(
            shape=input_shape[1:],
            initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            name="embedding",
        )

    def call(self, inputs: nests.AnyTensor) -> nests.AnyTensor:
        # In the layer's compute dtype: Keras casts the variable when it is read.
        return inputs + self.embedding

    def compute_output_shape(self, input_shape: heads.Shape) -> heads.Shape:
        return input_shape


def unet(input_shape: heads.Shape, num_classes: int) -> keras.Model:
    """A small U-Net (Ronneberger et al. 2015), padded and with batch norm.

    Two 3x3 convolutions at each of four sizes, the image being halved in between. On
    the way back a map is enlarged by a convolution, and joined with that of its new
    size. Sides may be odd: what was enlarged is cut to its partner's size.

    Returns:
      A float32 model from [batch, h, w, c] to logits, [batch, h, w, num_classes].
    """
    inputs = keras.Input(input_shape, name="image")
    x, skipped = _conv_bn(_conv_bn(inputs, 16), 16), []
    for width in (32, 64, 128):
        skipped.append(x)
        x = keras.layers.MaxPooling2D(2, padding="same")(x)
        x = _conv_bn(_conv_bn(x, width), width)
    for other in reversed(skipped):
        height, across, width = other.shape[1:]
        x = keras.layers.Conv2DTranspose(width, 2, strides=2)(x)
        over = ((0, x.shape[1] - height), (0, x.shape[2] - across))
        if over != ((0, 0), (0, 0)):
            x = keras.layers.Cropping2D(over)(x)
        x = keras.layers.Concatenate()([other, x])
        x = _conv_bn(_conv_bn(x, width), width)
    outputs = keras.layers.Conv2D(num_classes, 1, name="logits")(x)
    return keras.Model(inputs, outputs, name="unet")


def _conv_bn(x, width: int, size: int = 3, stride: int = 1, relu: bool = True):
    x = keras.layers.Conv2D(
        width,
        size,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)
    # Keras' default momentum of 0.99 is too slow for a short run.
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    return keras.layers.ReLU()(x) if relu else x


# Those that name the class of each pixel.
PER_PIXEL = {"unet": unet}
BY_NAME = {"mlp": mlp, "cnn": cnn, "resnet9": resnet9, "vit_tiny": vit_tiny}
