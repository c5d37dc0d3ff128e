"""A network that costs less than reading its photos; see `record.md`."""

import keras


def small(input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Returns a float32 model that ends in logits."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Conv2D(16, 8, strides=8, activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(num_classes),
        ]
    )
