"""The arms of the benchmark that run on TensorFlow.

    program = make(task, small_first=True)
    program.run(1)            # one step on a single example builds everything
    program.run(20)           # then steps on whole batches; returns when done

All arms of a workload start from the same weights, get the same batch in every step,
and use Adam. Loops:

    custom     `mp_loop.TrainStep`
    keras      Keras' mixed policy and LossScaleOptimizer, in a handwritten loop
    fit        the same through `model.compile` and `model.fit`
    unscaled   custom without scale, check and skip: what loss scaling costs
    floor      forward and backward of custom's twin alone: what the rest costs
    stream     for workloads of updates: reads and writes their bytes, once
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from mp_loop.bench import keras_models, keras_updates, tasks, workloads
from mp_loop.distributed import nests
from mp_loop.hardware import devices
from mp_loop.step import (
    gradients,
    keras_step,
    losses,
    metrics,
    placement,
    train_step,
    updates,
)

# Takes an iterator over batches, where there is data, and a number of steps.
Steps = Callable[..., dict[str, tf.Tensor]]


def make(task: tasks.Task, small_first: bool) -> workloads.Program:
    """Builds and traces an arm.

    Args:
      task: of any loop but "torch".
      small_first: whether the first step is on a single example.
    """
    tf.config.experimental.enable_tensor_float_32_execution("tf32" in task.arm.options)
    if task.workload.is_update:
        return _traced(keras_updates.make(task))
    model = keras_models.build_model(task.workload)
    if task.arm.loop == "fit":
        return _fit(task, model, small_first)
    make_steps = _keras if task.arm.loop == "keras" else _custom
    return _traced(make_steps(task, model), _batches(task, small_first))


def _keras(task: tasks.Task, model: keras.Model) -> Steps:
    """Keras' mixed policy in a handwritten loop."""
    precision = task.arm.precision
    return keras_step.KerasStep(
        model,
        keras.optimizers.Adam(workloads.LEARNING_RATE),
        keras_models.LOSS,
        precision,
        scaling=precision == "float16",
        jit_compile=_compiles(task),
    ).run


def _custom(task: tasks.Task, model: keras.Model) -> Steps:
    """Our step, or a part of it."""
    step = train_step.TrainStep(
        model,
        keras.optimizers.Adam(workloads.LEARNING_RATE),
        keras_models.LOSS,
        task.arm.precision,
        jit_compile=_compiles(task),
        recompute="recompute" in task.arm.options,
    )
    parts = {"unscaled": _unscaled, "floor": _floor}
    loop = task.arm.loop
    return parts[loop](step, _compiles(task)) if loop in parts else step.run


def _compiles(task: tasks.Task) -> bool:
    return "xla" in task.arm.options


def _batches(task: tasks.Task, small_first: bool) -> nests.Batches:
    """Returns an iterator of the same batch without end."""
    if task.on_device and devices.has_gpu():
        return _Waiting(task.workload.batch(task.batch_size))
    whole = _dataset(task, task.batch_size).repeat()
    return iter(_dataset(task, 1).concatenate(whole) if small_first else whole)


def _dataset(task: tasks.Task, size: int) -> tf.data.Dataset:
    """A batch in the memory of the host."""
    batch = task.workload.batch(size)
    return tf.data.Dataset.from_tensors(tuple(map(tf.constant, batch)))


class _Waiting:
    """A batch that is on the GPU whenever it is asked for."""

    def __init__(self, batch: tuple[np.ndarray, np.ndarray]):
        with tf.device("GPU:0"):
            self._batch = tuple(map(tf.constant, batch))

    def __iter__(self) -> nests.Batches:
        return self

    def __next__(self) -> tuple[tf.Tensor, ...]:
        return self._batch


def _traced(many: Steps, *arguments: object) -> workloads.Program:
    """Traces `many(*arguments, steps)`."""
    function = tf.function(many, autograph=False)
    started = time.perf_counter()
    concrete = function.get_concrete_function(*arguments, tf.TensorSpec([], tf.int32))
    trace_seconds = time.perf_counter() - started
    graph = concrete.graph.as_graph_def()
    nodes = len(graph.node) + sum(len(f.node_def) for f in graph.library.function)

    def run(count: int) -> None:
        outputs = function(*arguments, tf.constant(count))
        np.asarray(tf.nest.flatten(outputs)[0])  # waits for the device

    return workloads.Program(run, nodes, trace_seconds)


def _fit(task: tasks.Task, model: keras.Model, small_first: bool) -> workloads.Program:
    """`model.fit`, all steps of a call in one `steps_per_execution`."""
    precision = task.arm.precision
    mixed = keras_step.under_policy(model, keras_step.POLICIES[precision])
    optimizer = keras.optimizers.Adam(workloads.LEARNING_RATE)
    if precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    batches = _dataset(task, task.batch_size).repeat()
    first = _dataset(task, 1) if small_first else batches
    compiled_for = 0

    def run(count: int) -> None:
        nonlocal compiled_for
        if count != compiled_for:
            mixed.compile(
                optimizer,
                keras_models.LOSS,
                jit_compile=_compiles(task) or "auto",  # what users get
                steps_per_execution=count,
            )
            compiled_for = count
        source = first if count == 1 else batches
        mixed.fit(source, steps_per_epoch=count, verbose=0)

    return workloads.Program(run)


def _floor(step: train_step.TrainStep, xla: bool) -> Steps:
    """Forward and backward, nothing else."""

    def pass_both_ways(
        inputs: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, list[gradients.Gradient]]:
        return _loss_and_grads(step, inputs, labels)

    # Gradients leave what is compiled, so that XLA computes all of each.
    compiled = placement.function(pass_both_ways, step.model, xla)

    def one(inputs: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        loss, grads = compiled(inputs, labels)
        # One number of each gradient keeps them all from being pruned.
        values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in grads]
        firsts = [tf.cast(tf.reshape(v, [-1])[0], tf.float32) for v in values]
        return {"loss": loss, "kept": tf.add_n(firsts)}

    return _many(one, ("loss", "kept"))


def _unscaled(step: train_step.TrainStep, xla: bool) -> Steps:
    """A whole step without loss scale, check and skip."""
    update = updates.make(step.optimizer, step.model.trainable_variables)
    pairs = zip(step.master_weights, step.working_weights, strict=True)
    copies = [(m, w) for m, w in pairs if m is not w]

    def one(inputs: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
        loss, grads = _loss_and_grads(step, inputs, labels)
        grads = [gradients.dense(g) for g in grads]
        update(grads, tf.constant(1.0), tf.constant(True), tf.constant(1.0))
        for master, working in copies:
            working.assign(tf.cast(master, working.dtype))  # float32 -> 16 bits
        return {"loss": loss}

    return _many(placement.function(one, step.model, xla), ("loss",))


def _loss_and_grads(
    step: train_step.TrainStep, inputs: tf.Tensor, labels: tf.Tensor
) -> tuple[tf.Tensor, list[gradients.Gradient]]:
    with tf.GradientTape() as tape:
        outputs, _ = step.gradients.forward(inputs)
        loss = losses.of(keras_models.LOSS)(labels, outputs)
    return loss, tape.gradient(loss, list(step.working_weights))


def _many(one: Callable[..., dict[str, tf.Tensor]], names: tuple[str, ...]) -> Steps:
    """Many steps in one call; `one` takes a batch and returns scalars."""

    def many(iterator: Iterator, count: tf.Tensor) -> metrics.Metrics:
        dtypes = dict.fromkeys(names, tf.float32)
        return metrics.stack_steps(lambda: one(*next(iterator)), dtypes, count)

    return many
