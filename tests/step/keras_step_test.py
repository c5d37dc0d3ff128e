"""The baseline is Keras' own mixed precision, and ours agrees with it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.step import keras_step
from tests.support import steps

pytestmark = pytest.mark.usefixtures("same_bits")


def make_step(precision, model=None, **arguments):
    return keras_step.KerasStep(
        model or steps.conv_model(),
        keras.optimizers.SGD(0.05, momentum=0.9),
        steps.loss(),
        precision,
        **arguments,
    )


def without_dropout(model):
    """In 16 bits Keras draws masks of its own."""
    layers = [x for x in model.layers if not isinstance(x, keras.layers.Dropout)]
    return keras.Sequential([keras.Input(model.input_shape[1:]), *layers])


@pytest.mark.parametrize(
    ("precision", "policy"),
    [
        ("float16", "mixed_float16"),
        ("bfloat16", "mixed_bfloat16"),
        ("float32", "float32"),
    ],
)
def test_every_layer_but_the_last_is_under_keras_policy(precision, policy):
    step = make_step(precision)
    names = [layer.dtype_policy.name for layer in step.twin.layers]
    assert names == [policy] * (len(names) - 1) + ["float32"]
    assert steps.bits(step.twin.get_weights()) == steps.bits(
        steps.conv_model().get_weights()
    )


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_both_loops_see_the_same_scales_and_nearly_the_same_losses(precision):
    scaling = precision == "float16"
    rule = mp_loop.NoLossScale()
    if scaling:
        # Below 2**24 comes a power of 2 at which Keras overflows and ours does not.
        rule = mp_loop.DynamicLossScale(initial_scale=1.5 * 2**23, growth_interval=4)
    ours = mp_loop.TrainStep(
        without_dropout(steps.conv_model()),
        keras.optimizers.SGD(0.05, momentum=0.9),
        steps.loss(),
        precision,
        rule,
    )
    theirs = make_step(
        precision,
        without_dropout(steps.conv_model()),
        scaling=scaling,
        initial_scale=1.5 * 2**23,
        growth_interval=4,
    )
    skips = 0
    for seed in range(12):
        one, other = ours(*steps.data(seed)), theirs(*steps.data(seed))
        assert bool(one["grads_finite"]) == bool(other["grads_finite"])
        assert float(one["loss_scale"]) == float(other["loss_scale"])
        # Keras moves batch-norm statistics and rounds bias gradients: 12 steps of
        # rounding differences in 16 bits.
        epsilon = 2.0**-10 if scaling else 2.0**-7
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=8 * epsilon)
        skips += not one["grads_finite"]
    assert skips == int(ours.state.skipped_steps) == int(theirs.state.skipped_steps)
    assert (skips > 0) == scaling


def test_keras_ruins_its_statistics_in_a_skip_and_ours_do_not():
    inputs, labels = steps.data()
    inputs[0] = np.inf
    theirs = make_step("float16")
    theirs(inputs, labels)
    assert not np.isfinite(np.concatenate(theirs.export().get_weights()[4:6])).all()
    ours = steps.make()
    ours(inputs, labels)
    assert all(np.isfinite(w).all() for w in ours.model.get_weights())


def test_export_writes_the_trained_weights_into_the_float32_model():
    step = make_step("float16")
    before = steps.bits(step.model.get_weights())
    step(*steps.data())
    assert steps.bits(step.model.get_weights()) == before
    exported = step.export()
    assert exported is step.model
    assert steps.bits(exported.get_weights()) == steps.bits(step.twin.get_weights())
    assert {v.dtype for v in exported.weights} == {"float32"}


class Forgetful(keras.layers.Dense):
    """It does not tell an argument that it needs."""

    def __init__(self, units, factor, **arguments):
        super().__init__(units, **arguments)
        self.factor = factor


class OfFloat32(keras.layers.Layer):
    """It adds a float32 weight to what may be of 16 bits."""

    def build(self, shape):
        self.shift = self.add_weight((shape[-1],), autocast=False)

    def call(self, x):
        return tf.add(x, self.shift.value)


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (lambda: Forgetful(4, 2.0), r"layer 'forgetful\w*' \(Forgetful\)"),
        (OfFloat32, "model_of_a_user"),
    ],
)
def test_what_keras_cannot_make_again_is_refused_by_name(layer, named):
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(2)(layer()(inputs))
    model = keras.Model(inputs, outputs, name="model_of_a_user")
    expected = f"^`model`: {named} cannot be made again under Keras' mixed policy"
    with pytest.raises(ValueError, match=expected):
        keras_step.under_policy(model, "mixed_bfloat16")


def test_float32_takes_what_keras_cannot_make_again():
    model = keras.Sequential([keras.Input((4,)), Forgetful(2, 2.0)])
    before = model.get_weights()
    step = keras_step.KerasStep(model, keras.optimizers.SGD(0.1), "mse", "float32")
    x = np.ones((3, 4), np.float32)
    first, second = (float(step(x, x[:, :2])["loss"]) for _ in range(2))
    assert second < first
    assert step.export() is model
    assert np.any(model.get_weights()[0] != before[0])


def test_keras_arithmetic_refuses_by_name_as_well():
    model = keras.Sequential(
        [keras.Input((4,)), Forgetful(4, 2.0, name="mine"), keras.layers.Dense(2)]
    )
    with pytest.raises(ValueError, match=r"^`model`: layer 'mine' \(Forgetful\)"):
        mp_loop.TrainStep(model, "sgd", "mse", "bfloat16", keras_arithmetic=True)
