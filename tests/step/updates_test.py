"""Fused kernels compute what Keras does; what they lack is left to it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mp_loop.step import updates

FUSED = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "nesterov": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "sgd_decay": lambda: keras.optimizers.SGD(0.1, weight_decay=0.01),
    "scheduled": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(0.1, 30), momentum=0.9
    ),
    "adam": lambda: keras.optimizers.Adam(1e-2),
    "adamw": lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1),
}


def both_updates(make_optimizer, jit_compile=False):
    """Fused and Keras' updates on equal variables, as functions."""
    pairs = []
    for fused in (True, False):
        generator = np.random.default_rng(0)
        masters = [
            keras.Variable(generator.normal(size=shape).astype(np.float32))
            for shape in ((7, 5), (3,), (4, 3))
        ]
        update = updates.make(make_optimizer(), masters, fused)
        assert (type(update) is updates.FusedUpdate) is fused
        variables = [*update.slots, *(v.value for v in masters)]
        pairs.append((tf.function(update, jit_compile=jit_compile), variables))
    return pairs


def contents(variables):
    return [np.asarray(variable).tobytes() for variable in variables]


@pytest.mark.parametrize("jit_compile", [False, True], ids=["plain", "xla"])
@pytest.mark.parametrize("name", FUSED)
def test_fused_kernels_equal_keras(name, jit_compile):
    (fused, ours), (plain, theirs) = both_updates(FUSED[name], jit_compile)
    generator = np.random.default_rng(1)
    scale, before = tf.constant(2.0**10), contents(ours)
    for step in range(40):
        grads = [
            tf.constant(generator.normal(size=shape) * 2.0**10, tf.float32)
            for shape in ((7, 5), (3,), (4, 3))
        ]
        apply = tf.constant(step % 7 != 0)
        if not apply:
            grads[step % 3] *= float("inf") if step % 2 else float("nan")
            grads[1] += float("inf")
        largest = tf.constant(2.0**20)
        fused(grads, scale, apply, largest)
        plain(grads, scale, apply, largest)
        if not apply:
            assert contents(ours) == before  # exact, and neutral from step 0 on
        before = contents(ours)
    exact = not name.startswith("adam") and not jit_compile
    for one, other in zip(ours, theirs, strict=True):
        if exact:
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
        else:  # Other orders of rounding, 40 updates: a few units in the last place.
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6)


OTHERS = {
    "amsgrad": lambda: keras.optimizers.Adam(amsgrad=True),
    "clipped": lambda: keras.optimizers.SGD(global_clipnorm=1.0),
    "ema": lambda: keras.optimizers.Adam(use_ema=True),
    "accumulating": lambda: keras.optimizers.SGD(gradient_accumulation_steps=2),
    "rmsprop": lambda: keras.optimizers.RMSprop(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_the_kernels_lack_is_left_to_keras(name):
    update = updates.make(OTHERS[name](), [keras.Variable([1.0])])
    assert type(update) is updates.KerasUpdate


def test_a_constrained_master_is_left_to_keras():
    layer = keras.layers.Dense(2, kernel_constraint="non_neg")
    layer.build((None, 3))
    update = updates.make(keras.optimizers.SGD(), layer.trainable_variables)
    assert type(update) is updates.KerasUpdate
