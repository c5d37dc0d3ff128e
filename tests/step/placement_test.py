"""What a step captures can be on a GPU; what cannot is told, and runs without XLA."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop import train
from mp_loop.cli import app
from mp_loop.config import choices
from mp_loop.hardware import devices
from mp_loop.run import build
from mp_loop.step import keras_step, optimizers, placement, schedules
from tests.support import steps

pytestmark = pytest.mark.usefixtures("same_bits")

L = keras.layers
PRECISIONS = ("float16", "bfloat16", "float32")
METRIC = "sparse_categorical_accuracy"


@pytest.fixture
def gpu(monkeypatch):
    """TensorFlow sees a GPU: so this package believes."""
    monkeypatch.setattr(devices, "has_gpu", lambda: True)


@pytest.fixture
def keras_sees_gpu(monkeypatch):
    """Keras believes it as well."""
    seen = [*tf.config.list_physical_devices(), tf.config.PhysicalDevice("0", "GPU")]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: seen)
    assert devices.has_gpu()


def config(*words):
    parsed, _ = app.parse(["train", "--model=tests.step.placement_test:small", *words])
    return parsed


def small(input_shape, num_classes):
    """A model with all that asks for a GPU: short products, and steps of two pixels."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            L.AveragePooling2D(4),
            L.Conv2D(4, 1),
            L.DepthwiseConv2D(3, 2, "same"),
            L.Flatten(),
            L.Dense(num_classes),
        ]
    )


def is_compiled(function, *args):
    """Whether XLA compiles what changes variables; layers have none."""
    concrete = function.get_concrete_function(*args)
    inner = concrete.graph.as_graph_def().library.function
    return any(
        tf.resource in {tf.as_dtype(arg.type) for arg in found.signature.input_arg}
        for found in (concrete.function_def, *inner)
        if found.attr["_XlaMustCompile"].b
    )


# Every function that is compiled on a GPU, or may be: traced, not run.


def of_step(step, *args):
    args = args or (*map(tf.constant, steps.data()), None)
    return step._step.get_concrete_function(*args)


def of_fit(precision):
    model = mp_loop.for_fit(steps.conv_model(), precision)
    model.compile(keras.optimizers.Adam(), steps.loss(), metrics=[METRIC])
    model.make_train_function()
    return tf.function(model.train_step).get_concrete_function(
        tuple(map(tf.constant, steps.data()))
    )


def of_command(phase, *words):
    built = build.from_settings(config("--epochs=2", "--head_epochs=1", *words))
    batch = next(iter(built.batches(0)))
    return of_step(built.in_phase(phase).step, *batch)


def of_evaluation():
    step = mp_loop.EvalStep(steps.conv_model(), steps.loss(), METRIC)
    return of_step(step, *map(tf.constant, steps.data()))


def optimizer(name):
    if name == "lion":
        return keras.optimizers.Lion(weight_decay=0.1, use_ema=True)
    rate = schedules.learning_rate("cosine", 0.1, 20, warmup_steps=2)
    decay = 0.0 if name == "adam" else 0.1
    return optimizers.make(name, rate, weight_decay=decay)


OPTIONS = {
    "accumulated": {"accumulate_steps": 2},
    "recomputed": {"recompute": True},
    "clipped": {"clip_norm": 1.0},
    "Keras' arithmetic": {"keras_arithmetic": True},
    "waits": {"loss_scale": mp_loop.DynamicLossScale.preset("deepspeed")},
    "static": {"loss_scale": mp_loop.StaticLossScale(8.0)},
}
FUNCTIONS = {
    f"{precision}, {name}": lambda p=precision, n=name: of_step(
        steps.make(p, optimizer(n))
    )
    for precision in PRECISIONS
    for name in (*choices.OPTIMIZERS, "lion")
    # What an optimizer captures does not depend on the precision.
    if precision == "float16" or name in ("adam", "lion")
}
FUNCTIONS |= {
    name: lambda options=options: of_step(steps.make(**options))
    for name, options in OPTIONS.items()
}
FUNCTIONS |= {
    f"Keras' loop, {precision}": lambda p=precision: of_step(
        keras_step.KerasStep(
            steps.conv_model(), keras.optimizers.Adam(), steps.loss(), p
        )
    )
    for precision in PRECISIONS
}
FUNCTIONS |= {f"fit, {p}": lambda p=p: of_fit(p) for p in PRECISIONS}
COMMANDS = {
    "custom": ["--precision=float16", "--rollback=1", "--freeze=flatten"],
    "keras": ["--precision=float16", "--loop=keras", "--jit_compile=off"],
}
FUNCTIONS |= {
    f"command, {name}, phase {i}": lambda name=name, i=i: of_command(i, *COMMANDS[name])
    for name in COMMANDS
    for i in (0, 1)
}
FUNCTIONS["evaluation"] = of_evaluation


# float16 captures all that bfloat16 does, and a loss scale.
CAPTURED = [
    pytest.param(name, marks=[pytest.mark.slow] * ("bfloat16" in name))
    for name in FUNCTIONS
]


@pytest.mark.parametrize("name", CAPTURED)
def test_a_gpu_can_hold_all_that_is_captured(name, monkeypatch):
    traced = FUNCTIONS[name]()  # for this machine, without XLA
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    captured = [x for x in traced.captured_inputs if x.dtype == tf.resource]
    assert captured
    found = placement.unreachable(traced.captured_inputs)
    assert placement.describe(found, keras.Sequential([])) == []
    # Layers compute on values in compiled functions of their own.
    for function in traced.graph.as_graph_def().library.function:
        if function.attr["_XlaMustCompile"].b:
            types = {tf.as_dtype(arg.type) for arg in function.signature.input_arg}
            assert not types & {tf.resource, tf.string}


# A user's own model.


class Counts(L.Layer):
    """Counts its calls in a variable of the kind that the test asks for."""

    def __init__(self, make, **arguments):
        super().__init__(**arguments)
        self.make, self.mine = make, make(self)

    def call(self, inputs):
        if self.mine.dtype == tf.string:
            return inputs + tf.cast(tf.strings.length(self.mine), tf.float32)
        self.mine.assign(self.mine + 1)
        return inputs + tf.cast(self.mine, tf.float32)

    def get_config(self):
        return {**super().get_config(), "make": self.make}


def with_variable(make):
    keras.utils.set_random_seed(0)
    layers = [L.Dense(4), Counts(make, name="counts"), L.Dense(4)]
    return keras.Sequential([keras.Input((3,)), *layers]), np.ones((8, 3), np.float32)


def with_table(layer, inputs):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input(inputs.shape[1:], dtype=inputs.dtype),
            layer,
            L.Embedding(8, 4),
            L.Flatten(),
            L.Dense(4),
        ]
    )
    return model, inputs


def on_another_device(layer):
    with tf.device("CPU:1"):
        return tf.Variable(0.0, trainable=False)


WORDS = tf.constant([["a"], ["b"]] * 4)
UNREACHABLE = {
    "int32 variable": (
        lambda: with_variable(lambda layer: tf.Variable(0, trainable=False)),
        "counts (int32 variable on CPU:0)",
    ),
    "int32 weight": (
        lambda: with_variable(
            lambda layer: layer.add_weight(
                (), "zeros", "int32", trainable=False, name="calls"
            )
        ),
        "counts (int32 variable on CPU:0)",
    ),
    "string variable": (
        lambda: with_variable(lambda layer: tf.Variable("abc", trainable=False)),
        "counts (string variable on CPU:0)",
    ),
    "another device": (
        lambda: with_variable(on_another_device),
        "counts (float32 variable on CPU:1)",
    ),
    "IntegerLookup": (
        lambda: with_table(
            L.IntegerLookup(vocabulary=[3, 5], name="ids"),
            np.array([[3], [5]] * 4),
        ),
        "ids (StaticHashTable)",
    ),
    "StringLookup": (
        lambda: with_table(L.StringLookup(vocabulary=["a", "b"], name="words"), WORDS),
        "strings, words (StaticHashTable)",
    ),
    "TextVectorization": (
        lambda: with_table(
            L.TextVectorization(
                vocabulary=["a", "b"], output_sequence_length=2, name="text"
            ),
            WORDS,
        ),
        "strings, text/string_lookup (StaticHashTable)",
    ),
}
LABELS = np.arange(8) % 4


def told(caplog):
    """What this package warned of; TensorFlow says how often it traces."""
    return [r.getMessage() for r in caplog.records if r.name.startswith("mp_loop")]


def trained(model, inputs, loop=mp_loop.TrainStep, **arguments):
    """One step by itself and two in one call."""
    step = loop(model, keras.optimizers.SGD(0.1), steps.loss(), "float32", **arguments)
    assert step(inputs, LABELS)["grads_finite"]
    batches = tf.data.Dataset.from_tensors((inputs, LABELS)).repeat()
    assert np.isfinite(step.run(iter(batches), 2)["loss"]).all()
    return step


@pytest.mark.parametrize("name", UNREACHABLE)
def test_what_xla_cannot_reach_is_told_and_the_step_runs_without(name, gpu, caplog):
    make, said = UNREACHABLE[name]
    step = trained(*make(), jit_compile=True)
    (message,) = told(caplog)
    message = re.sub(r"string_lookup_\d+", "string_lookup", message)
    assert message == f"The step runs without XLA, which cannot reach: {said}."
    caplog.clear()
    plain = trained(*make())
    assert not told(caplog)
    assert steps.trained(step) == steps.trained(plain)


def test_what_replicas_exchange_is_not_compiled(caplog):
    """As TensorFlow traces it for GPUs; for processors see `replicas_test`."""

    def exchange(x):
        return tf.raw_ops.CollectiveReduceV2(
            input=x,
            group_size=2,
            group_key=1,
            instance_key=1,
            ordering_token=[],
            merge_op="Add",
            final_op="Id",
        )

    part = placement.part(exchange, keras.Sequential([]), True, "The sum")
    tf.function(part).get_concrete_function(tf.ones([2]))
    assert told(caplog) == [
        "The sum runs without XLA, which cannot exchange numbers between replicas."
    ]


@pytest.mark.parametrize("loop", [mp_loop.TrainStep, keras_step.KerasStep])
def test_a_processor_holds_what_a_gpu_does_not(loop, caplog):
    make, _ = UNREACHABLE["int32 variable"]
    step = trained(*make(), loop, jit_compile=True)
    assert is_compiled(step._step, *map(tf.constant, (make()[1], LABELS)), None)
    assert not told(caplog)


def test_keras_loop_runs_without_as_well(gpu, caplog):
    make, said = UNREACHABLE["int32 variable"]
    trained(*make(), keras_step.KerasStep, jit_compile=True)
    assert [said in message for message in told(caplog)] == [True]


def test_recomputing_runs_without_as_well(gpu, caplog):
    make, said = UNREACHABLE["int32 variable"]
    step = trained(*make(), jit_compile=True, recompute=True)
    assert [said in message for message in told(caplog)] == [True]
    # It waits by other means than XLA's.
    graph = of_step(step, *map(tf.constant, (make()[1], LABELS)), None).graph
    assert "XlaOptimizationBarrier" not in str(graph.as_graph_def())
    assert steps.trained(step) == steps.trained(trained(*make(), recompute=True))


def fitted(make, **arguments):
    model, inputs = make()
    model = mp_loop.for_fit(model, "float32")
    model.compile(keras.optimizers.SGD(0.1), steps.loss(), **arguments)
    model.fit(inputs, LABELS, 4, validation_data=(inputs, LABELS), verbose=0)
    return model


@pytest.mark.usefixtures("compiled_by_keras")
@pytest.mark.parametrize("jit_compile", ["auto", True])
def test_fit_runs_without_as_well(jit_compile, keras_sees_gpu, caplog):
    make, said = UNREACHABLE["int32 variable"]
    model = fitted(make, jit_compile=jit_compile)
    assert [said in message for message in told(caplog)] == [True]
    assert not model.jit_compile  # evaluation could not be compiled either
    plain = fitted(make, jit_compile=False)
    assert steps.bits(model.get_weights()) == steps.bits(plain.get_weights())


# Everything that asks for a GPU, where it is told that there is one.


@pytest.mark.usefixtures("compiled_by_keras")
def test_fit_is_compiled_on_a_gpu(keras_sees_gpu, caplog):
    def make():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), L.Dense(4)])
        return model, np.ones((8, 3), np.float32)

    model = fitted(make, jit_compile="auto")
    assert not told(caplog)
    batch = tuple(map(tf.constant, (make()[1][:4], LABELS[:4])))
    assert is_compiled(model.mixed_precision._take_step, batch)
    assert model.jit_compile  # evaluation is too
    plain = fitted(make, jit_compile=False)
    for mine, theirs in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    "words",
    [
        ["--precision=float16", "--head_epochs=1", "--rollback=1"],
        ["--precision=bfloat16", "--recompute"],
        ["--precision=float32", "--loop=keras"],
    ],
    ids=" ".join,
)
def test_a_command_compiles_its_steps_on_a_gpu(
    words, gpu, monkeypatch, tmp_path, caplog
):
    ran = []

    class Watched(placement.Compiled):
        def __call__(self, *args):
            ran.append(is_compiled(self, *args))
            return super().__call__(*args)

    monkeypatch.setattr(placement, "Compiled", Watched)
    words = [*words, "--batch_size=500", "--epochs=2", f"--output_dir={tmp_path}/run"]
    assert train.run(config(*words, "--quiet"), None) == 0
    phases = 1 + any(word.startswith("--head") for word in words)
    assert ran and all(ran) and len(ran) == phases
    assert not told(caplog)


def test_auto_compiles_what_replicas_do_alone(gpu, caplog):
    built = build.from_settings(config("--strategy=mirrored", "--precision=float16"))
    step = built.step
    batch = next(iter(built.batches(0)))
    assert step(*batch)["grads_finite"]
    assert is_compiled(step._step, *batch, None)
    assert not told(caplog)
