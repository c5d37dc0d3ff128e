"""Bit for bit Keras: every loss, weight, slot, statistic, scale and counter.

The long proofs run `python -m mp_loop.compare --exact`, as a user would, on real
data: 1,000 steps from a loss scale so high that dozens of them overflow. Other layers
take forty steps.
"""

import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import mp_loop
from mp_loop import compare
from mp_loop.cli import app
from mp_loop.comparison import bitwise, side_by_side
from mp_loop.run import build
from mp_loop.step import keras_step
from tests.support import steps

pytestmark = pytest.mark.usefixtures("same_bits")

MODELS = ("mlp", "cnn", "resnet20", "vit_tiny")
OPTIMIZERS = ("sgd", "nesterov", "adam", "adamw")


def cases():
    """Every pair of model, optimizer, clipping and schedule; one of them in CI."""
    for i, model in enumerate(MODELS):
        for j, optimizer in enumerate(OPTIMIZERS):
            clips, scheduled = (i ^ j) & 1, (i ^ j) >> 1
            words = [f"--model={model}", f"--optimizer={optimizer}"]
            words += ["--clip_norm=1"] * clips
            words += ["--schedule=cosine", "--warmup_steps=20"] * scheduled
            words += ["--learning_rate=0.02"] * (optimizer in ("sgd", "nesterov"))
            words += ["--weight_decay=0.01"] * (optimizer in ("adamw", "nesterov"))
            name = f"{model} {optimizer}{' clipped' * clips}{' scheduled' * scheduled}"
            quick = model == "mlp" and clips and scheduled
            slow = [] if quick else [pytest.mark.slow]
            yield pytest.param(words, marks=slow, id=name)


@pytest.mark.parametrize("words", list(cases()))
def test_a_thousand_steps_are_those_of_keras(words):
    process = subprocess.run(
        [
            *(sys.executable, "-m", "mp_loop.compare", "--exact", *words),
            *("--steps=1000", "--batch_size=2"),
            *("--initial_scale=1e14", "--growth_interval=50"),
        ],
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    skipped = re.match(r"1000 steps, (\d+) of them skipped: loss", process.stdout)
    assert int(skipped[1]) >= 20


@keras.saving.register_keras_serializable("bitwise_test")
class Block(keras.layers.Layer):
    """A layer as users write it."""

    def __init__(self, width=8, **arguments):
        super().__init__(**arguments)
        self.width = width
        self.norm = keras.layers.LayerNormalization(dtype=self.dtype_policy)
        self.dense = keras.layers.Dense(width, "gelu", dtype=self.dtype_policy)

    def build(self, shape):
        self.norm.build(shape)
        self.dense.build(shape)

    def call(self, x):
        y = self.dense(self.norm(x))
        weights = keras.ops.softmax(keras.ops.einsum("btd,bsd->bts", y, y))
        return x + keras.ops.matmul(weights, y)

    def get_config(self):
        return super().get_config() | {"width": self.width}


def grouped():
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Reshape((8, 8))(inputs)
    x = x + keras.layers.GroupQueryAttention(4, 4, 2)(x, x)
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(x)))


def test_steps_of_a_decoder_are_those_of_keras(monkeypatch):
    """Its sums of 16 bits are rewritten by TensorFlow if it may."""
    text = pathlib.Path(__file__).parents[2] / "README.md"
    words = ["--task=causal_lm", "--model=small_decoder", f"--dataset=text:{text}"]
    words += ["--sequence_length=16", "--batch_size=2", "--steps=12"]
    words += ["--initial_scale=1e6", "--growth_interval=4", "--optimizer=adamw"]
    config, _ = app.parse(["compare", "--exact", *words], compare.declare)
    original = build.from_settings
    monkeypatch.setattr(  # determinism would last beyond this test
        build, "from_settings", lambda x: original(x.replace(deterministic=False))
    )
    proof = side_by_side.prove(config)
    assert proof.difference is None, proof
    assert proof.steps == 12 and 0 < proof.skipped_steps < 8


def dense(**arguments):
    return [
        keras.Input((8, 8, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(16, activation="relu", **arguments),
        keras.layers.Dense(4),
    ]


def attention():
    inputs = keras.Input((8, 8, 1))
    rows = keras.layers.Dense(8)(keras.layers.Reshape((8, 8))(inputs))
    seen = keras.layers.MultiHeadAttention(2, 4, dropout=0.2, seed=5)(rows, rows)
    x = keras.layers.LayerNormalization()(rows + seen)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(4)(x))


def shared():
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Dense(8, activation="softmax")(keras.layers.Flatten()(inputs))
    body = keras.Sequential([keras.layers.Dense(8, activation="gelu")], name="body")
    return keras.Model(inputs, keras.layers.Dense(4)(body(body(x))))


def rows(*layers):
    """Layers on rows of 8 numbers."""
    inputs = [keras.Input((8, 8, 1)), keras.layers.Reshape((8, 8))]
    return keras.Sequential([*inputs, *layers, keras.layers.Dense(4)])


def embedding():
    tokens = keras.layers.Lambda(lambda x: keras.ops.cast(x[:, :, 0] > 0, "int32"))
    return rows(tokens, keras.layers.Embedding(3, 8), keras.layers.Flatten())


ARCHITECTURES = {
    "conv, batch norm, dropout": steps.conv_model,
    "regularized": lambda: keras.Sequential(dense(kernel_regularizer="l2")),
    "activity regularized": lambda: keras.Sequential(dense(activity_regularizer="l2")),
    "constrained": lambda: keras.Sequential(dense(kernel_constraint="non_neg")),
    "attention with dropout": attention,
    "shared, nested, softmax inside": shared,
    "embedding with repeated rows": embedding,
    "lstm, both ways": lambda: rows(keras.layers.Bidirectional(keras.layers.LSTM(8))),
    "gru": lambda: rows(keras.layers.GRU(8)),
    "a user's block": lambda: rows(Block(), keras.layers.Flatten()),
    "grouped queries": grouped,
    "time distributed": lambda: rows(
        keras.layers.TimeDistributed(keras.layers.Dense(4)), keras.layers.Flatten()
    ),
    "pooling and group norm": lambda: keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.DepthwiseConv2D(3, depth_multiplier=4),
            keras.layers.GroupNormalization(2),
            keras.layers.AveragePooling2D(2),
            keras.layers.SeparableConv2D(4, 2),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(4),
        ]
    ),
}


def both(make_model, precision="float16", keras_arithmetic=True, **arguments):
    """Our step and Keras' on equal models, from a scale that overflows."""
    scaling = precision == "float16"
    constants = {"initial_scale": 2.0**30, "growth_interval": 8}
    rule = mp_loop.NoLossScale()
    if scaling:
        rule = mp_loop.DynamicLossScale.preset("keras", **constants)
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        models.append(make_model())
    ours = mp_loop.TrainStep(
        models[0],
        keras.optimizers.Adam(1e-2),
        steps.loss(),
        precision,
        rule,
        keras_arithmetic=keras_arithmetic,
        **arguments,
    )
    theirs = keras_step.KerasStep(
        models[1],
        keras.optimizers.Adam(1e-2),
        steps.loss(),
        precision,
        scaling=scaling,
        **constants,
    )
    return ours, theirs


def batches(count=40):
    return (steps.data(seed) for seed in range(count))


# In bfloat16 one of each kind: a convolution, an attention, a recurrence.
QUICK = ("conv, batch norm, dropout", "attention with dropout", "gru")


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, "float16") for name in ARCHITECTURES),
        *((name, "bfloat16") for name in QUICK),
        *(
            pytest.param(name, "bfloat16", marks=pytest.mark.slow)
            for name in ARCHITECTURES
            if name not in QUICK
        ),
    ],
)
def test_forty_steps_of_other_architectures(name, precision):
    proof = bitwise.prove(*both(ARCHITECTURES[name], precision), batches(), 40)
    assert proof.difference is None, proof
    assert proof.steps == 40
    assert (proof.skipped_steps > 4) == (precision == "float16")


def test_the_default_arithmetic_is_told_apart_at_once():
    proof = bitwise.prove(*both(attention, keras_arithmetic=False), batches(), 40)
    assert proof.difference.step == 1
    assert proof.difference.name == "loss"  # the softmax is float32
    assert proof.steps == 1


def flipped(variable, index):
    """Flips the last bit of one element."""
    values = np.array(variable.numpy())
    values.view(np.int32)[index] ^= 1
    variable.assign(values)


@pytest.mark.parametrize(
    ("choose", "index", "name"),
    [
        pytest.param(
            lambda ours: ours.model.weights[-2].value, (3, 1), "dense", id="weight"
        ),
        pytest.param(
            lambda ours: ours.model.weights[5].value, (2,), "moving_var", id="statistic"
        ),
        pytest.param(
            lambda ours: ours.optimizer.variables[4].value, (1,), "adam", id="slot"
        ),
        pytest.param(
            lambda ours: ours.state.loss_scale[0], (), "loss scale", id="scale"
        ),
    ],
)
def test_one_bit_is_found_and_named(choose, index, name):
    ours, theirs = both(steps.conv_model)
    honest = ours._step

    def tampered(*batch):
        metrics = honest(*batch)
        if int(ours.state.step) == 3:
            flipped(choose(ours), index)
        return metrics

    ours._step = tampered
    proof = bitwise.prove(ours, theirs, batches(), 40)
    assert proof.difference.step == proof.steps == 3
    assert name in proof.difference.name
    assert proof.difference.index == index
    assert proof.difference.count == 1
    assert proof.difference.ours != proof.difference.theirs
    said = f"First difference after step 3: {proof.difference.name}"
    assert said in str(proof) and "others" not in str(proof)


def test_nan_equals_nan_but_zero_is_not_minus_zero():
    nans = np.array([np.nan, 1.0], np.float32)
    other = nans.copy()
    other.view(np.int32)[0] ^= 1
    assert np.isnan(other[0])
    assert bitwise._same(nans, other).numpy().tolist() == [True, True]
    assert not bitwise._same(np.float32(0.0), np.float32(-0.0))


def test_the_command_fails_where_a_bit_differs(monkeypatch, capsys):
    words = ["--exact", "--model=mlp", "--steps=3", "--batch_size=4"]
    config, flag_values = app.parse(["compare", *words], compare.declare)
    original = build.from_settings

    def tampered(config):
        built = original(config.replace(deterministic=False))
        if config.precision.loop == "custom":
            flipped(built.model.weights[0].value, (0, 0))
        return built

    monkeypatch.setattr(build, "from_settings", tampered)
    assert compare.run(config, flag_values) == 1
    assert capsys.readouterr().out.startswith("1 steps, 0 of them skipped: First")
