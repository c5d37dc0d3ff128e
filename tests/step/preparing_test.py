"""Inputs that are prepared in the step are those that were prepared before it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.numerics import probe, probe_report
from mp_loop.step import keras_step
from tests.support import steps, two_devices

pytestmark = pytest.mark.usefixtures("same_bits")

SHAPE = (4, 3, 1)


def prepare(pixels):
    """A compiler would fuse this, and round once where it says twice."""
    return tf.cast(pixels, tf.float32) * np.float32(1 / 73) - np.float32(1.7)


def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(4, name="head"),
        ]
    )


def batch(late):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (steps.BATCH, *SHAPE), np.uint8)
    return images if late else prepare(images), generator.integers(0, 4, steps.BATCH)


def batches(late):
    return tf.data.Dataset.from_tensors(batch(late)).repeat(2)


def keras_loop(**arguments):
    optimizer = keras.optimizers.SGD(0.1)
    return keras_step.KerasStep(model(), optimizer, steps.loss(), **arguments)


def our_loop(late, **arguments):
    optimizer, given = keras.optimizers.SGD(0.1), prepare if late else None
    return steps.make("float32", optimizer, model(), prepare=given, **arguments)


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "XLA"])
def test_both_loops_prepare_their_batches_to_the_bit(compiled):
    found = []
    for late in (False, True):
        ours = our_loop(late, jit_compile=compiled, accumulate_steps=2 - compiled)
        theirs = keras_loop(
            precision="float32",
            scaling=False,
            jit_compile=compiled,
            prepare=prepare if late else None,
        )
        for step in (ours, theirs):
            step.run(iter(batches(late)), 2)
        found.append([steps.trained(ours), steps.trained(theirs)])
    assert found[0] == found[1]


def test_evaluations_probes_and_replicas_prepare_as_well():
    found = []
    for late in (False, True):
        step = our_loop(late)
        looked = probe.Probe(step).look(*batch(late))
        given = prepare if late else None
        evaluate = mp_loop.EvalStep(
            step.model, steps.loss(), "sparse_categorical_accuracy", given
        )
        evaluation = evaluate(batches(late))
        with two_devices.STRATEGY.scope():
            two = our_loop(late)
        two(*batch(late))
        looked = probe_report.summarize(looked)
        found.append((evaluation, looked["layers"], two_devices.whole_state(two)))
    assert found[0] == found[1]
