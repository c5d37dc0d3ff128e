"""Errors of 16 bits are measured where they are made."""

import keras
import numpy as np

from mp_loop.numerics import layer_search, precision_errors
from mp_loop.step import losses
from tests.support import steps


def squares():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dropout(0.5, name="dropout")(x)
    large = keras.initializers.Identity(400.0)
    x = keras.layers.EinsumDense(
        "bhwc,cd->bhwd", (8 - 2, 8 - 2, 4), kernel_initializer=large, name="large"
    )(x)
    x = keras.layers.Multiply(name="square")([x, keras.layers.ReLU(name="relu")(x)])
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    x = keras.layers.Rescaling(1e-5, name="small")(x)
    x = keras.layers.Dense(8, name="hidden")(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(x))


def meter(precision="float16", **arguments):
    model = squares()
    made = precision_errors.ErrorMeter(
        model,
        losses.of(steps.loss()),
        [steps.data(), steps.data(seed=1)],
        precision,
        **arguments,
    )
    return model, made


def test_the_layer_that_overflows_is_named_and_the_model_is_left_alone():
    model, made = meter()
    before = steps.bits([v.value for v in model.variables])
    weightless = ["dropout", "relu", "square", "small"]
    assert made.candidates == [*weightless, "norm", "large", "conv", "hidden"]
    assert made.errors(()).outputs == np.inf
    found = layer_search.fewest_layers(
        made.candidates, lambda names: made.errors(names).within(0.05, 0.5)
    )
    # Which also makes the square one of float32.
    assert found == layer_search.LayerSet(("relu",), True)
    repaired = made.errors(("square",))
    assert 0 < repaired.outputs < 0.01 and 0 < repaired.grads < 0.1
    assert repaired.variable in [v.path for v in model.trainable_variables]
    everything = made.errors(made.candidates)
    assert everything.outputs < 1e-5 and everything.grads < 1e-4
    assert steps.bits([v.value for v in model.variables]) == before
    assert made.evaluations <= 12


def test_a_scale_that_is_too_large_is_lowered_until_gradients_fit():
    _, made = meter(scale=2.0**40)
    error = made.errors(("square",))
    assert error.within(0.05, 0.5)
    assert error.scale == 2.0 ** (40 - 4 * round((40 - np.log2(error.scale)) / 4))
    assert error.scale < 2.0**30


def test_float64_sees_the_rounding_of_float32():
    _, made = meter("bfloat16", scale=1.0, reference="float64")
    error = made.errors(made.candidates)
    assert 1e-9 < error.outputs < 1e-5
    assert made.errors(()).within(0.05, 0.5)  # bfloat16 reaches as far as float32
