"""A network of filter energies, on images as they come: it breaks in float16.

The shallow network of Schirrmeister et al. 2017 (arXiv 1703.05051, section 2.4.3):
filters in time and space, squared, averaged, and the logarithm of that. Its inputs
are not normalized: 8-bit grey values that are multiplied by 255 again here, since
`mp_loop` normalizes them. A filter's answer is some hundreds, and its square passes
65504.
"""

import keras


def energies(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Returns the model: images to logits."""
    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.Rescaling(255.0, name="grey_values")(inputs)
    x = keras.layers.Conv2D(24, 5, kernel_initializer="he_normal", name="across")(x)
    x = keras.layers.Conv2D(24, 5, kernel_initializer="he_normal", name="filters")(x)
    x = keras.layers.Multiply(name="square")([x, x])
    x = keras.layers.AveragePooling2D(5, strides=3, name="energy")(x)
    x = keras.ops.log(keras.ops.maximum(x, 1e-6))
    x = keras.layers.BatchNormalization(momentum=0.9, name="norm")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    outputs = keras.layers.Dense(num_classes, name="logits")(x)
    return keras.Model(inputs, outputs, name="energies")
