"""What only a GPU can show: placement, copies, memory. `python -m pytest -m gpu`.

Without one, `python -m pytest -m gpu --gpu_tests_on=CPU:1` runs it on the second
logical CPU, where what strays to the first shows as it would on the host.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mp_loop
from mp_loop import train
from mp_loop.bench import memory
from mp_loop.cli import app
from mp_loop.run import build
from mp_loop.step import keras_step, placement
from tests.support import steps, transfers

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("where_it_runs")]

L = keras.layers
PRECISIONS = ("float32", "bfloat16", "float16")
HALVES = PRECISIONS[1:]
METRIC = "sparse_categorical_accuracy"


# Placement.


def of_step(step):
    batch = (*map(tf.constant, steps.data()), None)
    return step._step.get_concrete_function(*batch), step.state.named().values()


def of_keras():
    step = keras_step.KerasStep(
        steps.conv_model(), keras.optimizers.Adam(), steps.loss(), "float16"
    )
    return of_step(step)


def of_fit():
    model = mp_loop.for_fit(steps.conv_model(), "float16")
    model.compile(keras.optimizers.Adam(), steps.loss(), metrics=[METRIC])
    model.make_train_function()
    batch = tuple(map(tf.constant, steps.data()))
    traced = tf.function(model.train_step).get_concrete_function(batch)
    return traced, [v.value for v in (*model.variables, *model.optimizer.variables)]


def of_evaluation():
    model = steps.conv_model()
    step = mp_loop.EvalStep(model, steps.loss(), METRIC)
    traced = step._step.get_concrete_function(*map(tf.constant, steps.data()))
    return traced, [v.value for v in model.variables]


def small(input_shape, num_classes):
    """A model with a batch norm and a head, for a command."""
    layers = [L.AveragePooling2D(4), L.Conv2D(4, 3), L.BatchNormalization()]
    layers += [L.Flatten(), L.Dense(num_classes)]
    return keras.Sequential([keras.Input(input_shape), *layers])


def config(*words):
    parsed, _ = app.parse(["train", "--model=tests.claims.gpu_test:small", *words])
    return parsed


def of_command(phase):
    words = ["--epochs=2", "--head_epochs=1", "--precision=float16", "--rollback=1"]
    built = build.from_settings(config(*words))
    batch = next(iter(built.batches(0)))
    step = built.in_phase(phase).step
    return step._step.get_concrete_function(*batch, None), step.state.named().values()


FUNCTIONS = {p: lambda p=p: of_step(steps.make(p)) for p in PRECISIONS}
FUNCTIONS |= {
    "accumulated, recomputed": lambda: of_step(
        steps.make(accumulate_steps=2, recompute=True)
    ),
    "compiled": lambda: of_step(steps.make(jit_compile=True)),
    "Keras' loop": of_keras,
    "fit": of_fit,
    "evaluation": of_evaluation,
    "command, head alone": lambda: of_command(0),
    "command, whole model": lambda: of_command(1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_variable_is_on_the_device(name, gpu_device):
    traced, variables = FUNCTIONS[name]()
    places = {tensor.device for tensor in traced.captured_inputs} - {""}
    places |= {variable.device for variable in variables}
    assert len(places) == 1 and places.pop().endswith(gpu_device)
    assert placement.unreachable(traced.captured_inputs) == []


# Copies.


def endless(gpu_device, waits_on_device):
    """An iterator over one batch, which waits on the device, or on the host."""
    with tf.device("CPU:0"):
        batches = tf.data.Dataset.from_tensors(steps.data()).repeat()
        if not waits_on_device:
            return iter(batches)
    batches = batches.apply(
        tf.data.experimental.copy_to_device(f"/device:{gpu_device}")
    )
    with tf.device(gpu_device):
        return iter(batches)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["plain", "XLA"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_call_of_many_steps_copies_nothing(
    precision, jit_compile, gpu_device, on_gpu
):
    step = steps.make(precision, jit_compile=jit_compile)
    # A loop counts on the host of a GPU, and has no other place on a processor.
    ignored = () if on_gpu else (tf.int32, tf.bool)
    iterator = endless(gpu_device, waits_on_device=True)
    assert transfers.in_loops(lambda: step.run(iterator, 3), gpu_device, ignored) == []


def test_of_batches_on_the_host_nothing_else_is_copied(gpu_device, on_gpu):
    step = steps.make()
    iterator = endless(gpu_device, waits_on_device=False)
    ignored = () if on_gpu else (tf.int32, tf.bool)
    found = transfers.in_loops(lambda: step.run(iterator, 3), gpu_device, ignored)
    assert sorted(x.dtype.name for x in found) == ["float32", "int64"]
    assert all("IteratorGetNext" in x.name for x in found)


# Memory.


def wide_model(width, layers=6):
    """A model whose activations take more memory than its weights."""
    keras.utils.set_random_seed(0)
    hidden = [L.Dense(width, "gelu") for _ in range(layers)]
    return keras.Sequential([keras.Input((width,)), *hidden, L.Dense(4)])


def bytes_of_a_step(precision, on_gpu):
    """What a step adds at its peak, what is held, and the bytes of all variables."""
    width, batch = (1024, 16_384) if on_gpu else (8, 32)
    used = memory.of_framework("tensorflow")
    before = used.held()
    step = steps.make(precision, model=wide_model(width))
    inputs, labels = tf.zeros((batch, width)), tf.zeros((batch,), tf.int64)
    held = []
    for _ in range(4):
        used.reset_peak()
        at_rest = used.held()
        assert np.isfinite(step(inputs, labels)["loss"])
        added = used.peak() - at_rest
        held.append(used.held() - before)
    variables = sum(
        v.shape.num_elements() * v.dtype.size for v in step.state.named().values()
    )
    return added, held, variables + batch * (4 * width + 8)


def test_a_step_takes_half_the_memory_and_keeps_none(on_gpu):
    found = {precision: bytes_of_a_step(precision, on_gpu) for precision in PRECISIONS}
    if not on_gpu:
        return  # the process holds more than tensors
    for precision, (_, held, tensors) in found.items():
        assert len(set(held[1:])) == 1, precision
        assert held[-1] <= 1.02 * tensors + 2**20, precision
    for half in HALVES:
        assert found[half][0] <= 0.6 * found["float32"][0], half


# Commands, and `fit`.


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_default_command_is_compiled(precision, on_gpu, tmp_path, monkeypatch):
    made = []

    class Watched(placement.Compiled):
        def __init__(self, *args, **arguments):
            made.append(self)
            super().__init__(*args, **arguments)

    monkeypatch.setattr(placement, "Compiled", Watched)
    words = [f"--precision={precision}", "--batch_size=500", "--epochs=1", "--quiet"]
    assert train.run(config(*words, f"--output_dir={tmp_path}/run"), None) == 0
    assert bool(made) == on_gpu


@pytest.mark.parametrize("precision", PRECISIONS)
def test_fit_trains_and_evaluates(precision):
    inputs, labels = steps.data(batch=64)
    model = mp_loop.for_fit(steps.conv_model(), precision)
    model.compile(keras.optimizers.Adam(1e-2), steps.loss(), metrics=[METRIC])
    told = model.fit(inputs, labels, 16, 6, verbose=0, validation_data=(inputs, labels))
    assert told.history["loss"][-1] < told.history["loss"][0]
    assert np.isfinite(told.history["val_loss"]).all()
