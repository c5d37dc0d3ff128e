"""What workers exchange between steps."""

import keras
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.distributed import workers
from tests.support import two_devices

optimizers = keras.optimizers


def test_replicas_that_drift_apart_are_named():
    with two_devices.STRATEGY.scope():
        step = mp_loop.TrainStep(
            two_devices.network(),
            optimizers.SGD(0.1),
            two_devices.crossentropy(),
            "float32",
        )
    every = workers.Workers(two_devices.STRATEGY)
    every.check_equal(two_devices.variables(step))
    second = two_devices.STRATEGY.experimental_local_results(step.master_weights[2])[1]
    second.assign_add(2.0**-24 * tf.ones_like(second))
    with pytest.raises(workers.ReplicasDiffer, match="1 of 2 replicas hold another"):
        every.check_equal(two_devices.variables(step))
    every._assign_from_first(two_devices.variables(step))
    every.check_equal(two_devices.variables(step))
