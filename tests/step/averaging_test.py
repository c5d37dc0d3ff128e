"""Moving averages: float32, untouched by a skip, and lent to the model for a while."""

import keras
import numpy as np
import pytest

from mp_loop.step import averaging, keras_step
from tests.support import steps, two_devices

pytestmark = pytest.mark.usefixtures("same_bits")

DECAY = 0.5


def optimizer():
    return keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=DECAY)


def averages_of(step):
    with averaging.averaged(step):
        return [v.numpy().copy() for v in step.model.trainable_variables]


def test_they_are_of_the_updates_alone():
    step = steps.make("float16", optimizer())
    first = steps.bits(step.master_weights)
    inputs, labels = steps.data()
    step(np.full_like(inputs, np.nan), labels)  # a skip: nothing to average yet
    assert steps.bits(averages_of(step)) == first
    expected = None
    for number in range(4):
        metrics = step(np.full_like(inputs, np.inf) if number == 2 else inputs, labels)
        weights = [v.numpy() for v in step.master_weights]
        assert bool(metrics["grads_finite"]) is (number != 2)
        if expected is None:
            expected = weights
        elif number != 2:
            pairs = zip(expected, weights, strict=True)
            expected = [DECAY * old + (1 - DECAY) * new for old, new in pairs]
        state = steps.trained(step)
        assert steps.bits(averages_of(step)) == steps.bits(expected)
        assert steps.trained(step) == state


def test_they_are_given_back_after_an_error():
    step = steps.make("bfloat16", optimizer())
    step(*steps.data())
    step(*steps.data(1))
    weights = steps.bits(step.model.trainable_variables)
    try:
        with averaging.averaged(step):
            assert steps.bits(step.model.trainable_variables) != weights
            raise OSError
    except OSError:
        assert steps.bits(step.model.trainable_variables) == weights


def test_without_averages_nothing_changes():
    step = steps.make("bfloat16")
    step(*steps.data())
    assert steps.bits(averages_of(step)) == steps.bits(step.master_weights)


def test_keras_loop_has_the_same():
    step = keras_step.KerasStep(steps.conv_model(), optimizer(), steps.loss())
    for seed in range(3):
        step(*steps.data(seed))
    step.export()
    inner = step.optimizer
    expected = steps.bits(inner._model_variables_moving_average)
    assert steps.bits(averages_of(step)) == expected


def test_every_replica_holds_them():
    one, two = two_devices.pair(
        two_devices.network, optimizer, two_devices.crossentropy(), "float32"
    )
    for seed in range(3):
        batch = two_devices.images(seed)
        one(*batch), two(*batch)
    before = two_devices.whole_state(two)
    for mine, other in zip(averages_of(two), averages_of(one), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)
    with averaging.averaged(two):
        two_devices.assert_replicas_equal(two)
    assert two_devices.whole_state(two) == before
