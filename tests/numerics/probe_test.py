"""Probes see what the step computes, and leave every bit where it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop.numerics import counting, float_format, histogram, probe, probe_report
from tests.support import steps

pytestmark = pytest.mark.usefixtures("same_bits")


def logits_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def nested_model():
    keras.utils.set_random_seed(1)
    block = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            keras.layers.Conv2D(4, 3, padding="same", name="inner"),
            keras.layers.BatchNormalization(name="norm"),
        ],
        name="block",
    )
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    shared = keras.layers.Conv2D(4, 1, name="shared")
    x = shared(shared(x)) + block(x)
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    x = keras.layers.Dropout(0.5, name="dropout")(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(x))


def everything(step):
    return steps.bits(probe.variables(step))


MODELS = {
    "nested": lambda: steps.make(model=nested_model()),
    "float32": lambda: steps.make("float32"),
    "micro-batches": lambda: steps.make(accumulate_steps=4),
    "bfloat16": lambda: steps.make("bfloat16"),
    "clipped rmsprop": lambda: steps.make(
        optimizer=keras.optimizers.RMSprop(1e-3), clip_norm=0.1
    ),
    "keras arithmetic": lambda: steps.make(keras_arithmetic=True),
}


SLOW = ("float32", "bfloat16", "clipped rmsprop", "keras arithmetic")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in MODELS
    ],
)
def test_a_probe_leaves_every_bit(name):
    step, twin = MODELS[name](), MODELS[name]()
    inputs, labels = steps.data()
    for each in (step, twin):
        each(inputs, labels)
    look = probe.Probe(step)
    before = everything(step)
    poisoned = np.full_like(inputs, np.inf)
    line = probe_report.summarize(look.look(inputs, labels))
    probe_report.summarize(look.look(poisoned, labels, scale=2.0**20))
    assert look.origin(inputs, labels)["finite"]
    assert not look.origin(poisoned, labels)["finite"]
    assert everything(step) == before
    # And the next step is the one that would have been.
    mine, other = step(inputs, labels), twin(inputs, labels)
    for metric in mine:
        assert mine[metric].numpy() == other[metric].numpy()
    assert everything(step) == everything(twin)
    assert (line["step"], line["grads_finite"]) == (1, True)
    # Observers keep kernels apart that TensorFlow would fuse, and round once.
    assert line["loss"] == pytest.approx(float(mine["loss"]), rel=1e-3)
    assert all(layer["activations"]["inf"] == 0 for layer in line["layers"])


def test_layers_are_named_in_order_of_execution():
    step = steps.make(model=nested_model())
    look = probe.Probe(step)
    line = probe_report.summarize(look.look(*steps.data()))
    found = [(layer["name"], layer["type"], layer["dtype"]) for layer in line["layers"]]
    assert sorted(found[:5]) == sorted(
        [
            ("first", "Conv2D", "float16"),
            ("shared", "Conv2D", "float16"),
            ("shared#2", "Conv2D", "float16"),
            ("block/inner", "Conv2D", "float16"),
            ("block/norm", "BatchNorm", "float16"),
        ]
    )
    assert found[5][1:] == ("Add", "float16")
    assert found[6:] == [
        ("mean", "GlobalAveragePooling2D", "float32"),
        ("dropout", "Dropout", "float16"),
        ("logits", "Dense", "float32"),
    ]
    assert [v["name"] for v in line["variables"]] == [
        v.path for v in step.model.trainable_variables
    ]


def dense_model():
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="relu", name="a"),
            keras.layers.Dense(16, name="b"),
            keras.layers.Dense(4, name="c"),
        ]
    )


def test_counts_are_those_of_a_plain_float32_pass():
    model = dense_model()
    step = mp_loop.TrainStep(model, keras.optimizers.SGD(0.1), logits_loss())
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(32, 8)).astype(np.float32)
    labels = generator.integers(0, 4, 32)
    look = probe.Probe(step)
    line = probe_report.summarize(look.look(inputs, labels, scale=2.0**3), share=0.1)

    with tf.GradientTape() as tape:
        a = model.layers[0](inputs)
        b = model.layers[1](a)
        c = model.layers[2](b)
        loss = tf.reduce_mean(logits_loss()(labels, c))
    masters = [v.value for v in model.trainable_variables]
    grads = tape.gradient(loss, [a, b, c, *masters])
    form = float_format.FLOAT16
    seen = [layer["activation_grads"] for layer in line["layers"]]
    seen += [variable["grads"] for variable in line["variables"]]
    for entry, grad in zip(seen, grads, strict=True):
        these = histogram.Histogram(counting.magnitudes(grad).numpy())
        assert entry["count"] == these.count
        assert entry["zero"] * these.count == pytest.approx(these.zeros)
        assert entry["max"] == pytest.approx(np.abs(grad).max(), rel=1e-5)
        for name, expected in (
            ("underflow_unscaled", these.underflows(form)),
            ("underflow", these.underflows(form, 3)),
            ("subnormal", these.subnormals(form, 3)),
            ("overflow", these.overflows(form, 3)),
        ):
            assert entry[name] * these.nonzero == pytest.approx(expected, abs=1)
        assert sum(entry["histogram"]) == these.nonzero
        assert entry["first"] == min(these.exponents)
        room = histogram.headroom(float(np.abs(grad).max()), form, 8.0)
        assert entry["headroom"] == pytest.approx(room, abs=1e-4)
        assert (entry["scale_from"], entry["scale_to"]) == these.scales(form, 0.1)
    for layer, tensor in zip(line["layers"], (a, b, c), strict=True):
        assert layer["activations"]["max"] == pytest.approx(np.abs(tensor).max())
        assert "scale_to" not in layer["activations"]
    # What is kept in 16 bits: the outputs of a and b, and the kernels of a, b, c
    # (the last layer is a float32 island).
    assert [layer["dtype"] for layer in line["layers"]] == ["float16"] * 2 + ["float32"]
    narrow = [seen[i] for i in (0, 1, 3, 5)]
    assert line["loss_scales"] == [
        max(entry["scale_from"] for entry in narrow),
        min(entry["scale_to"] for entry in narrow),
    ]


def test_what_is_predicted_to_vanish_vanishes():
    """The predicted zeros of float16 against those of the 16-bit pass."""
    step = mp_loop.TrainStep(dense_model(), keras.optimizers.SGD(0.1), logits_loss())
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(256, 8)).astype(np.float32)
    look = probe.Probe(step)
    sight = look.look(inputs, generator.integers(0, 4, 256), scale=2.0**-14)
    layers = probe_report.summarize(sight)["layers"]
    for layer in layers[:2]:
        entry = layer["activation_grads"]
        predicted = entry["zero"] + entry["underflow"] * (1 - entry["zero"])
        assert predicted > 0.2
        assert entry["zero_16"] == pytest.approx(predicted, abs=0.02)
        assert entry["underflow_unscaled"] < 0.01


def test_updates_are_measured_against_their_weights():
    rate = 2.0**-16
    step = mp_loop.TrainStep(dense_model(), keras.optimizers.Adam(rate), logits_loss())
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(32, 8)).astype(np.float32)
    labels = generator.integers(0, 4, 32)
    look = probe.Probe(step)
    line = probe_report.summarize(look.look(inputs, labels))
    before = [np.array(v) for v in step.master_weights]
    step(inputs, labels)
    for variable, old, new in zip(
        line["variables"], before, step.master_weights, strict=True
    ):
        updates = variable["updates"]
        changed, below, unseen = counting.lost_updates(old, new, tf.float16).numpy()
        assert updates["changed"] == pytest.approx(changed / old.size)
        assert updates["below"] == pytest.approx(below / max(changed, 1))
        assert updates["unseen"] == pytest.approx(unseen / max(changed, 1))
        if variable["name"].endswith("kernel"):
            assert updates["unseen"] > 0.9 and updates["below"] > 0.9
            ratio = np.linalg.norm(new - old) / np.linalg.norm(old)
            assert updates["ratio"] == pytest.approx(ratio, rel=1e-3)
        else:  # A bias starts at 0, where any update is seen.
            assert updates["unseen"] == 0 and updates["ratio"] is None


def test_a_twin_of_the_users_own_is_seen_by_its_own_layers():
    class Own(keras.Model):
        def __init__(self, dtype):
            super().__init__()
            self.a = keras.layers.Dense(8, dtype=dtype, name="a")
            self.rnn = keras.layers.SimpleRNN(4, dtype="float32", name="rnn")
            self.b = keras.layers.Dense(4, dtype="float32", name="b")

        def call(self, x):
            return self.b(self.rnn(self.a(x)))

    keras.utils.set_random_seed(0)
    model, twin = Own("float32"), Own("float16")
    inputs = np.ones((4, 3, 8), np.float32)
    model(inputs), twin(inputs)
    step = mp_loop.TrainStep(model, keras.optimizers.SGD(0.1), logits_loss(), twin=twin)
    look = probe.Probe(step)
    line = probe_report.summarize(look.look(inputs, np.array([0, 1, 2, 3])))
    assert [layer["name"] for layer in line["layers"]] == ["a", "rnn", "b"]
    assert [layer["dtype"] for layer in line["layers"]] == [
        "float16", "float32", "float32",
    ]  # fmt: skip
    assert line["precision"] == "float16"
