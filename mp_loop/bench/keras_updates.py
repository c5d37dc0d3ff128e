"""The second half of a step alone: given 16-bit gradients are applied.

    many = make(task)                             # of a chain of kernels
    many(20)                                      # updates

The model is a chain of kernels; it is never called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from mp_loop.bench import keras_models, tasks, workloads
from mp_loop.step import metrics, train_step


def make(task: tasks.Task) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Makes the updates of an arm.

    Args:
      task: of the loop "custom", "keras" or "stream", which reads and writes as many
        bytes; the gradients are of its precision.

    Returns:
      A function of a number of updates.
    """
    model = keras_models.build_model(task.workload)
    scaled_grads = [
        tf.random.normal(variable.shape, dtype=task.arm.precision)
        for variable in model.trainable_variables
    ]
    kinds = {"custom": _custom, "keras": _keras, "stream": _stream}
    one = kinds[task.arm.loop](model, scaled_grads)

    def many(count: tf.Tensor) -> metrics.Metrics:
        return metrics.stack_steps(lambda: {"x": one()}, {"x": tf.float32}, count)

    return many


def _custom(
    model: keras.Model, scaled_grads: Sequence[tf.Tensor]
) -> Callable[[], tf.Tensor]:
    precision = scaled_grads[0].dtype.name
    optimizer = keras.optimizers.Adam(workloads.LEARNING_RATE)
    step = train_step.TrainStep(model, optimizer, keras_models.LOSS, precision)
    return lambda: step.apply(scaled_grads)["grad_norm"]


def _keras(
    model: keras.Model, scaled_grads: Sequence[tf.Tensor]
) -> Callable[[], tf.Tensor]:
    masters = model.trainable_variables
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(workloads.LEARNING_RATE)
    )
    optimizer.build(masters)

    def one() -> tf.Tensor:
        # 16 bits -> float32
        optimizer.apply([tf.cast(g, tf.float32) for g in scaled_grads], masters)
        return tf.identity(optimizer.dynamic_scale.value)

    return one


def _stream(
    _model: keras.Model, scaled_grads: Sequence[tf.Tensor]
) -> Callable[[], tf.Tensor]:
    """30 bytes per parameter; gradient, slots, master and copy need 28."""
    slots = [[tf.Variable(tf.zeros(g.shape)) for _ in range(3)] for g in scaled_grads]
    copies = [tf.Variable(g) for g in scaled_grads]

    def one() -> tf.Tensor:
        for (master, m, v), copy in zip(slots, copies, strict=True):
            v.assign_add(m)
            master.assign_add(m)
            copy.assign(tf.cast(master, copy.dtype))
        return tf.constant(0.0)

    return one
