"""The numbers of a GPU, bit by bit where that is claimed: `python -m pytest -m gpu`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.comparison import bitwise
from mp_loop.step import keras_step
from tests.support import steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("where_it_runs", "same_bits"),
]

L = keras.layers
PRECISIONS = ("float32", "bfloat16", "float16")
HALVES = PRECISIONS[1:]
# An ulp of 1 in the dtype that multiplies.
EPSILON = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


def attention_model(dropout=0.1):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = L.Dense(16)(L.Reshape((8, 8))(inputs))
    seen = L.MultiHeadAttention(2, 8, dropout=dropout, seed=5)(x, x)
    x = L.Dense(16, "gelu")(L.LayerNormalization()(x + seen))
    return keras.Model(inputs, L.Dense(4)(L.GlobalAveragePooling1D()(x)))


MODELS = {"convolutions": steps.conv_model, "attention": attention_model}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", HALVES)
def test_steps_are_those_of_keras_loss_scale_optimizer(model, precision):
    constants = {"initial_scale": 2.0**30, "growth_interval": 8}
    scaling = precision == "float16"
    rule = mp_loop.DynamicLossScale.preset("keras", **constants)
    arguments = {"loss_scale": rule} if scaling else {}
    ours = steps.make(
        precision, None, MODELS[model](), keras_arithmetic=True, **arguments
    )
    theirs = keras_step.KerasStep(
        MODELS[model](),
        keras.optimizers.Adam(1e-2),
        steps.loss(),
        precision,
        scaling=scaling,
        **constants,
    )
    proof = bitwise.prove(ours, theirs, map(steps.data, range(30)), 30)
    assert proof.difference is None, proof
    assert proof.steps == 30 and (proof.skipped_steps > 4) == scaling


@pytest.mark.parametrize("jit_compile", [False, True], ids=["plain", "XLA"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", MODELS)
def test_it_trains_skips_and_repeats_itself(model, precision, jit_compile):
    made = [steps.make(precision, None, MODELS[model](), jit_compile=jit_compile)
            for _ in range(2)]  # fmt: skip
    inputs, labels = steps.data()
    batches = iter(tf.data.Dataset.from_tensors((inputs, labels)).repeat())
    losses = [float(made[0](inputs, labels)["loss"]) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]
    made[1].run(batches, 12)
    assert steps.trained(made[0]) == steps.trained(made[1])
    before = steps.trained(made[0])
    skipped = made[0](np.full_like(inputs, np.nan), labels)
    assert not skipped["grads_finite"] and steps.trained(made[0]) == before


@pytest.mark.parametrize("precision", PRECISIONS)
def test_xla_computes_what_plain_kernels_do(precision):
    batch = steps.data()
    found = []
    for jit_compile in (False, True):
        model = attention_model(dropout=0)  # XLA draws other masks
        found.append(
            steps.make(precision, None, model, jit_compile=jit_compile)(*batch)
        )
    for name in ("loss", "grad_norm"):  # of sums in other orders
        plain, compiled = (float(metrics[name]) for metrics in found)
        assert abs(plain - compiled) <= 16 * EPSILON[precision] * abs(plain), name


def test_float32_is_not_tf32():
    """Sums of 256 products: TF32 errs by 1e-3 of one, float32 by 1e-6."""
    generator = np.random.default_rng(0)
    a, b = (generator.normal(size=(256, 256)) for _ in range(2))
    found = tf.matmul(tf.constant(a, tf.float32), tf.constant(b, tf.float32))
    assert np.abs(found - a @ b).max() < 1e-4
