"""How much of a model multiplies in 16 bits: counted by hand."""

import keras
import numpy as np
import pytest

import mp_loop
from mp_loop.precision import coverage

L = keras.layers


def test_shares_are_those_of_the_products():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = L.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = L.Conv2DTranspose(2, 2, strides=2, name="transpose")(x)
    x = L.Dense(5, name="exempt")(L.Flatten()(x))
    model = keras.Model(inputs, L.Dense(10, name="head")(x))
    found = mp_loop.coverage(model, "bfloat16", float32_layers="exempt")
    counts = {share.layer: (share.narrow, share.float32) for share in found.layers}
    assert counts == {
        "conv": (64 * 9 * 3 * 4, 0),
        "depthwise": (64 * 9 * 4, 0),
        "transpose": (64 * 4 * 2 * 4, 0),
        "exempt": (0, 16 * 16 * 2 * 5),
        "head": (0, 50),
    }
    total = sum(map(sum, counts.values()))
    assert found.share == (total - 2560 - 50) / total
    text = "of this model's multiply-adds run in bfloat16; in float32: exempt ("
    assert text in str(found) and "head (0.4 %)" in str(found)


def test_a_loop_counts_as_often_as_it_runs():
    inputs = keras.Input((7, 8))
    model = keras.Model(inputs, L.Dense(2)(L.LSTM(4, name="lstm")(inputs)))
    found = mp_loop.coverage(model, "float16").layers[0]
    assert (found.layer, found.narrow) == ("lstm/lstm_cell", 7 * (8 + 4) * 16)


def test_nothing_in_16_bits_is_said_and_not_scaled(caplog):
    model = keras.Sequential([keras.Input((4,)), L.Dense(2)])
    found = mp_loop.coverage(model, "float16")
    assert found.share == 0 and "Nothing of this model" in str(found)
    step = mp_loop.TrainStep(model, keras.optimizers.SGD(), "mse", "float16")
    assert isinstance(step.rule, mp_loop.NoLossScale)
    assert "no gradient is scaled" in caplog.text


def test_a_subclassed_model_needs_an_example():
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(3)

        def call(self, inputs):
            return self.dense(inputs["x"])

    model = Plain()
    example = {"x": np.zeros((2, 4), np.float32)}
    model(example)
    with pytest.raises(ValueError, match=r"`inputs` \(None\) must be an example"):
        mp_loop.coverage(model, "float16")
    assert mp_loop.coverage(model, "float16", inputs=example).share == 1


@pytest.mark.parametrize("float32_products", [True, False])
def test_float32_copies_of_16_bits_count_as_16_bits(float32_products):
    model = keras.Sequential([keras.Input((6, 8)), L.LSTM(4), L.Dense(4), L.Dense(2)])
    twin = mp_loop.half_precision_twin(
        model, "float16", float32_products=float32_products
    )
    assert coverage.of_twin(twin, model, "float16").share > 0.99


def test_a_grouped_convolution_counts_as_what_it_is():
    """Keras has XLA compile it."""

    class Grouped(L.Layer):
        def build(self, shape):
            self.conv = L.Conv2D(16, 3, groups=4, padding="same", name="conv")
            self.conv.build(shape)

        def call(self, inputs):
            return self.conv(inputs)

    inputs = keras.Input((8, 8, 16))
    x = L.GlobalAveragePooling2D()(Grouped(name="grouped")(inputs))
    model = keras.Model(inputs, L.Dense(2)(x))
    found = mp_loop.coverage(model, "bfloat16").layers[0]
    assert (found.layer, found.narrow) == ("grouped/conv", 64 * 9 * 4 * 16)


def test_said_as_it_is():
    said = [coverage.percent(x) for x in (0, 1e-6, 0.5, 0.9999, 1)]
    assert said == ["0 %", "< 0.1 %", "50.0 %", "99.9 %", "100 %"]
