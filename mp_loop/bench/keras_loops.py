"""The arms of the benchmark that run on TensorFlow.

    program = make("custom", "bfloat16", {"recompute"}, "resnet20", batch_size=128)
    program.run(1)            # one step on a single example: all is built now
    program.run(20)           # then steps on whole batches; returns when done

All arms of a workload start from the same weights, see the same batch again and
again, and use Adam. Loops:

    custom     `mp_loop.TrainStep`
    keras      Keras' mixed policy and LossScaleOptimizer, in a handwritten loop
    fit        the same through `model.compile` and `model.fit`
    unscaled   custom without scale, check and skip: what loss scaling costs
    floor      forward and backward of custom's twin alone: what the rest costs
    stream     for workloads of updates: reads and writes their bytes, once
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mp_loop.bench import workloads
from mp_loop.models import catalog, language
from mp_loop.step import gradients, keras_step, metrics, train_step, updates

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


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
    model = build_model(workload)
    workload = workloads.WORKLOADS[workload]
    xla = "xla" in options
    if workload.is_update:
        return _traced(_update(loop, precision, model))
    first, batches = _batches(workload, batch_size)
    optimizer = keras.optimizers.Adam(1e-3)
    if loop == "fit":
        return _fit(model, precision, xla, first, batches)
    if loop == "keras":
        scaling = precision == "float16"
        step = keras_step.KerasStep(
            model, optimizer, LOSS, precision, scaling=scaling, jit_compile=xla
        )
        many = step.run
    else:
        step = train_step.TrainStep(
            model,
            optimizer,
            LOSS,
            precision,
            jit_compile=xla,
            recompute="recompute" in options,
        )
        kinds = {
            "custom": lambda step: step.run,
            "unscaled": _unscaled,
            "floor": _floor,
        }
        many = kinds[loop](step)
    return _traced(many, iter(first.concatenate(batches)))


def build_model(name: str) -> keras.Model:
    """Builds the float32 model of a workload, with the same weights every time."""
    keras.utils.set_random_seed(0)
    workload = workloads.WORKLOADS[name]
    if workload.is_update:
        return _chain(workload.width, workload.layers)
    if name == "bert":
        return _bert(workload)
    if workload.vocabulary:
        return _transformer(workload)
    if name.startswith("transfer"):
        return _transfer(workload, name == "transfer_head")
    if len(workload.shape) == 1:
        inputs = x = keras.Input(workload.shape)
        for _ in range(workload.layers):
            x = keras.layers.Dense(workload.width, activation="relu")(x)
        return keras.Model(inputs, keras.layers.Dense(workload.classes)(x))
    known = {"vit": "vit_tiny"}.get(name, name)
    return catalog.build(known, workload.shape, workload.classes)


def _chain(width: int, layers: int) -> keras.Model:
    inputs = x = keras.Input((width,))
    for _ in range(layers):
        x = keras.layers.Dense(width, use_bias=False)(x)
    return keras.Model(inputs, keras.layers.Identity()(x))


def _transformer(workload: workloads.Workload) -> keras.Model:
    """An encoder with a classifier on the mean over positions."""
    width = workload.width
    inputs = keras.Input(workload.shape, dtype="int32")
    x = keras.layers.Embedding(workload.vocabulary, width)(inputs)
    x = catalog.PositionEmbedding()(x)
    for _ in range(workload.layers):
        x = catalog.encoder_block(x, width, workloads.HEADS)
    x = keras.layers.LayerNormalization(epsilon=1e-6)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(workload.classes)(x))


def _bert(workload: workloads.Workload) -> keras.Model:
    """As `_transformer`, of keras-hub's layers; random weights."""
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=workload.vocabulary,
        num_layers=workload.layers,
        num_heads=12,
        hidden_dim=workload.width,
        intermediate_dim=4 * workload.width,
        max_sequence_length=512,
    )
    return language.with_head(
        backbone, workload.shape[0], workload.classes, dropout=0.1
    )


def _transfer(workload: workloads.Workload, head: bool) -> keras.Model:
    """MobileNetV2 with random weights, the last layer trained alone or not."""
    features = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=workload.shape
    )
    model = catalog.with_head(features, workload.classes)
    catalog.freeze(model, "(?i)bn")
    if head:
        catalog.Trained(model).head_alone()
    return model


def _batches(
    workload: workloads.Workload, batch_size: int
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Returns a batch of a single example, and the same whole batch for ever."""
    single, whole = [
        tf.data.Dataset.from_tensors(
            tuple(tf.constant(array) for array in workload.batch(size))
        )
        for size in (1, batch_size)
    ]
    return single, whole.repeat()


def _traced(many: Callable[[Iterator, int], Any], *arguments: Any) -> workloads.Program:
    """Traces `many(*arguments, steps)`."""
    function = tf.function(many)
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

    optimizer = keras.optimizers.Adam(1e-3)
    if precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    compiled_for = 0

    def run(count: int) -> None:
        nonlocal compiled_for
        if count != compiled_for:
            mixed.compile(
                optimizer,
                LOSS,
                jit_compile=xla or "auto",  # what users get
                steps_per_execution=count,
            )
            compiled_for = count
        source = first if count == 1 else batches
        mixed.fit(source, steps_per_epoch=count, verbose=0)

    return workloads.Program(run)


def _floor(step: train_step.TrainStep) -> Callable[[Iterator, tf.Tensor], Any]:
    """Forward and backward, nothing else."""

    def one(inputs: Any, labels: Any) -> dict[str, tf.Tensor]:
        loss, grads = _loss_and_grads(step, inputs, labels)
        # One number of each gradient keeps them all from being pruned.
        values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in grads]
        firsts = [tf.cast(tf.reshape(v, [-1])[0], tf.float32) for v in values]
        return {"loss": loss, "kept": tf.add_n(firsts)}

    return _many(one, ("loss", "kept"))


def _unscaled(step: train_step.TrainStep) -> Callable[[Iterator, tf.Tensor], Any]:
    """A whole step without loss scale, check and skip."""
    update = updates.make(step.optimizer, step.model.trainable_variables)
    pairs = zip(step.master_weights, step.working_weights, strict=True)
    copies = [(m, w) for m, w in pairs if m is not w]

    def one(inputs: Any, labels: Any) -> dict[str, tf.Tensor]:
        loss, grads = _loss_and_grads(step, inputs, labels)
        grads = [tf.cast(tf.convert_to_tensor(g), tf.float32) for g in grads]
        update(grads, tf.constant(1.0), tf.constant(True))
        for master, working in copies:
            working.assign(tf.cast(master, working.dtype))  # float32 -> 16 bits
        return {"loss": loss}

    return _many(one, ("loss",))


def _loss_and_grads(
    step: train_step.TrainStep, inputs: Any, labels: Any
) -> tuple[tf.Tensor, list[updates.Grad]]:
    with tf.GradientTape() as tape:
        outputs, _ = step.forward(inputs)
        loss = gradients.mean_loss(LOSS, labels, outputs, None)
    return loss, tape.gradient(loss, list(step.working_weights))


def _many(one: Callable, names: tuple[str, ...]) -> Callable:
    def many(iterator: Iterator, count: tf.Tensor) -> Any:
        dtypes = dict.fromkeys(names, tf.float32)
        return metrics.stack_steps(lambda: one(*next(iterator)), dtypes, count)

    return many


def _update(loop: str, precision: str, model: keras.Model) -> Callable:
    """The second half of a step, on given 16-bit gradients."""
    dtype = tf.as_dtype(precision)
    optimizer = keras.optimizers.Adam(1e-3)
    masters = model.trainable_variables
    scaled_grads = [tf.random.normal(v.shape, dtype=dtype) for v in masters]

    def grads() -> list[tf.Tensor]:
        return [tf.cast(g, tf.float32) for g in scaled_grads]  # 16 bits -> float32

    if loop == "custom":
        step = train_step.TrainStep(model, optimizer, LOSS, precision)

        def one() -> tf.Tensor:
            return step.apply(grads())["grad_norm"]

    elif loop == "keras":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(masters)

        def one() -> tf.Tensor:
            optimizer.apply(grads(), masters)
            return tf.identity(optimizer.dynamic_scale.value)

    else:  # 30 bytes a parameter; gradient, slots, master and copy need 28
        slots = [[tf.Variable(tf.zeros(v.shape)) for _ in range(3)] for v in masters]
        copies = [tf.Variable(g) for g in scaled_grads]

        def one() -> tf.Tensor:
            for (master, m, v), copy in zip(slots, copies, strict=True):
                v.assign_add(m)
                master.assign_add(m)
                copy.assign(tf.cast(master, dtype))
            return tf.constant(0.0)

    def many(count: tf.Tensor) -> Any:
        return metrics.stack_steps(lambda: {"x": one()}, {"x": tf.float32}, count)

    return many


class DeviceMemory:
    """The memory held on the first GPU, in bytes."""

    base = 0

    @staticmethod
    def exists() -> bool:
        return bool(tf.config.list_physical_devices("GPU"))

    def start(self) -> None:
        """Counts from here."""
        self.base = self.held()

    def held(self) -> int:
        return tf.config.experimental.get_memory_info("GPU:0")["current"]

    def reset_peak(self) -> None:
        tf.config.experimental.reset_memory_stats("GPU:0")

    def peak(self) -> int:
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]


def host_copies(run: Callable[[int], None]) -> int:
    """Counts the copies between host and GPU in one call of three steps."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            run(3)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    names = [
        plane.event_metadata[event.metadata_id].name
        for plane in space.planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        for event in line.events
    ]
    return sum("HtoD" in name or "DtoH" in name for name in names)
