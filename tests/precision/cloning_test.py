"""Clones of models: what they copy, and what they leave."""

import keras
import pytest
from keras import ops

from mp_loop.precision import keras_twin, twins
from mp_loop.step import keras_step


class OwnLoss(keras.losses.Loss):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, labels, outputs):
        return self.factor * ops.mean(abs(labels - outputs), -1)


class OwnSchedule(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1


CLONES = {
    "a twin": lambda model: twins.half_precision_twin(model, "float16"),
    "with Keras' arithmetic": lambda model: keras_twin.keras_twin(model, "bfloat16"),
    "under a policy": lambda model: keras_step.under_policy(model, "mixed_bfloat16"),
}


@pytest.mark.parametrize("name", CLONES)
def test_a_clone_needs_nothing_of_what_a_model_was_compiled_with(name):
    """None of these objects can be made again from a configuration."""
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    inner.compile(loss=lambda labels, outputs: outputs)
    model = keras.Sequential([keras.Input((2,)), inner, keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(OwnSchedule())
    model.compile(optimizer, OwnLoss(2.0), metrics=[lambda labels, outputs: 1.0])
    clone = CLONES[name](model)
    assert not clone.compiled
    assert model.compiled and inner.compiled and model.optimizer is optimizer
