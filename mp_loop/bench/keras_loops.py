"""The arms of the benchmark that run on TensorFlow.

    program = make("custom", "bfloat16", {"recompute"}, "resnet20", batch_size=128)
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
from collections.abc import Callable, Collection, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mp_loop.bench import keras_models, keras_updates, workloads
from mp_loop.step import keras_step, losses, metrics, train_step, updates

# Takes an iterator over batches, where there is data, and a number of steps.
Steps = Callable[..., Any]


def make(
    loop: str, precision: str, options: Collection[str], workload: str, batch_size: int
) -> workloads.Program:
    """Builds and traces an arm.

    Args:
      loop: see the module's docstring.
      precision: "float16", "bfloat16" or "float32".
      options: "xla", "recompute" (custom, unscaled and floor), "tf32".
      workload: a key of `workloads.WORKLOADS`.
      batch_size: examples of a step.
    """
    tf.config.experimental.enable_tensor_float_32_execution("tf32" in options)
    model = keras_models.build_model(workload)
    workload = workloads.WORKLOADS[workload]
    if workload.is_update:
        return _traced(keras_updates.make(loop, precision, model))
    xla = "xla" in options
    first, batches = _batches(workload, batch_size)
    if loop == "fit":
        return _fit(model, precision, xla, first, batches)
    if loop == "keras":
        many = _keras(model, precision, xla)
    else:
        many = _custom(loop, model, precision, xla, "recompute" in options)
    return _traced(many, iter(first.concatenate(batches)))


def _keras(model: keras.Model, precision: str, xla: bool) -> Steps:
    """Keras' mixed policy in a handwritten loop."""
    return keras_step.KerasStep(
        model,
        keras.optimizers.Adam(workloads.LEARNING_RATE),
        keras_models.LOSS,
        precision,
        scaling=precision == "float16",
        jit_compile=xla,
    ).run


def _custom(
    loop: str, model: keras.Model, precision: str, xla: bool, recompute: bool
) -> Steps:
    """Our step, or a part of it."""
    step = train_step.TrainStep(
        model,
        keras.optimizers.Adam(workloads.LEARNING_RATE),
        keras_models.LOSS,
        precision,
        jit_compile=xla,
        recompute=recompute,
    )
    parts = {"unscaled": _unscaled, "floor": _floor}
    return parts[loop](step) if loop in parts else step.run


def _batches(
    workload: workloads.Workload, batch_size: int
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Returns a batch of one example, and a whole batch repeated without end."""
    single, whole = [
        tf.data.Dataset.from_tensors(
            tuple(tf.constant(array) for array in workload.batch(size))
        )
        for size in (1, batch_size)
    ]
    return single, whole.repeat()


def _traced(many: Steps, *arguments: Any) -> workloads.Program:
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


def _fit(
    model: keras.Model,
    precision: str,
    xla: bool,
    first: tf.data.Dataset,
    batches: tf.data.Dataset,
) -> workloads.Program:
    """`model.fit`, all steps of a call in one `steps_per_execution`."""
    mixed = keras_step.under_policy(model, keras_step.POLICIES[precision])
    optimizer = keras.optimizers.Adam(workloads.LEARNING_RATE)
    if precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    compiled_for = 0

    def run(count: int) -> None:
        nonlocal compiled_for
        if count != compiled_for:
            mixed.compile(
                optimizer,
                keras_models.LOSS,
                jit_compile=xla or "auto",  # what users get
                steps_per_execution=count,
            )
            compiled_for = count
        source = first if count == 1 else batches
        mixed.fit(source, steps_per_epoch=count, verbose=0)

    return workloads.Program(run)


def _floor(step: train_step.TrainStep) -> Steps:
    """Forward and backward, nothing else."""

    def one(inputs: Any, labels: Any) -> dict[str, tf.Tensor]:
        loss, grads = _loss_and_grads(step, inputs, labels)
        # One number of each gradient keeps them all from being pruned.
        values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in grads]
        firsts = [tf.cast(tf.reshape(v, [-1])[0], tf.float32) for v in values]
        return {"loss": loss, "kept": tf.add_n(firsts)}

    return _many(one, ("loss", "kept"))


def _unscaled(step: train_step.TrainStep) -> Steps:
    """A whole step without loss scale, check and skip."""
    update = updates.make(step.optimizer, step.model.trainable_variables)
    pairs = zip(step.master_weights, step.working_weights, strict=True)
    copies = [(m, w) for m, w in pairs if m is not w]

    def one(inputs: Any, labels: Any) -> dict[str, tf.Tensor]:
        loss, grads = _loss_and_grads(step, inputs, labels)
        grads = [tf.cast(tf.convert_to_tensor(g), tf.float32) for g in grads]
        update(grads, tf.constant(1.0), tf.constant(True), tf.constant(1.0))
        for master, working in copies:
            working.assign(tf.cast(master, working.dtype))  # float32 -> 16 bits
        return {"loss": loss}

    return _many(one, ("loss",))


def _loss_and_grads(
    step: train_step.TrainStep, inputs: Any, labels: Any
) -> tuple[tf.Tensor, list[updates.Grad]]:
    with tf.GradientTape() as tape:
        outputs, _ = step.gradients.forward(inputs)
        loss = losses.of(keras_models.LOSS)(labels, outputs)
    return loss, tape.gradient(loss, list(step.working_weights))


def _many(one: Callable[..., dict[str, tf.Tensor]], names: tuple[str, ...]) -> Steps:
    """Many steps in one call; `one` takes a batch and returns scalars."""

    def many(iterator: Iterator, count: tf.Tensor) -> Any:
        dtypes = dict.fromkeys(names, tf.float32)
        return metrics.stack_steps(lambda: one(*next(iterator)), dtypes, count)

    return many
