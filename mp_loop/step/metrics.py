"""The metrics that a step returns, and many steps in one call."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

import tensorflow as tf
from tensorflow.python.framework import config

from mp_loop.distributed import nests

# What every step returns, scalars by name. `KerasStep` has no `grad_norm` and no
# `skip_reason`.
METRICS = {
    "loss": tf.float32,
    "grads_finite": tf.bool,
    "forward_finite": tf.bool,
    "loss_scale": tf.float32,
    "grad_norm": tf.float32,
    "learning_rate": tf.float32,
    "skip_reason": tf.int32,
}
# Why a step was skipped, by `skip_reason`; "" is a step that was not. The first that
# applies: the loss or a statistic, a gradient (or the sum of its squares, where these
# are needed), the norm of all, or the learning rate was not finite, or the update would
# have written something that is not.
SKIP_REASONS = ("", "forward", "gradient", "norm", "rate", "update")

# When a step of `run` began to wait for its batch, and when it had it: seconds since
# 1970, by the host's clock; NaN with deterministic operations.
FETCHES = {"fetch_began": tf.float64, "fetch_ended": tf.float64}
OF_RUN = METRICS | FETCHES

Metrics = dict[str, tf.Tensor]


def of_batch(returned: Mapping[str, tf.Tensor]) -> list[str]:
    """Names of what is a mean over the batch: the loss, and metrics asked for."""
    return [name for name in returned if name == "loss" or name not in OF_RUN]


def skip_reason(causes: Mapping[str, tf.Tensor], applied: tf.Tensor) -> tf.Tensor:
    """Returns the place in `SKIP_REASONS` of why a step was skipped, int32 [].

    Args:
      causes: bool [] by reason, whether it was one.
      applied: bool [], whether the update was made.
    """
    reason = tf.where(applied, 0, SKIP_REASONS.index("update"))
    for name in reversed(SKIP_REASONS):
        if name in causes:
            reason = tf.where(causes[name], SKIP_REASONS.index(name), reason)
    return reason


def stack_steps(
    one_step: Callable[[], Metrics], dtypes: dict[str, tf.DType], steps: tf.Tensor
) -> Metrics:
    """Calls a step many times and stacks its scalar metrics.

    They travel as one float64 row, which holds each of them exactly: a loop pays for
    every tensor it carries. What the host measures stays there.

    Args:
      one_step: takes one step and returns at least the metrics of `dtypes`.
      dtypes: of each metric to be stacked.
      steps: int32 [], how many; traced, so that another number does not retrace.

    Returns:
      The metrics of `dtypes`, each of shape [steps].
    """
    of_step = [name for name in dtypes if name not in FETCHES]
    of_host = [name for name in dtypes if name in FETCHES]
    host_rows = _HostRows(steps, len(of_host)) if of_host else None

    def body(i: tf.Tensor, rows: tf.TensorArray) -> tuple:
        metrics = one_step()
        row = tf.stack([tf.cast(metrics[name], tf.float64) for name in of_step])
        if host_rows:
            host_rows.write(i, [metrics[name] for name in of_host])
        return i + 1, rows.write(i, row)

    rows = tf.TensorArray(tf.float64, size=steps, element_shape=[len(of_step)])
    _, rows = tf.while_loop(
        lambda i, _: i < steps, body, (tf.constant(0), rows), parallel_iterations=1
    )
    stacked = tf.unstack(rows.stack(), len(of_step), axis=1)
    columns = dict(zip(of_step, stacked, strict=True))
    if host_rows:
        columns |= dict(zip(of_host, host_rows.columns(), strict=True))
    return {name: tf.cast(columns[name], dtype) for name, dtype in dtypes.items()}


class _HostRows:
    """Rows of float64 that a loop writes on the host and does not carry.

    A tensor that a loop carries is copied to the device and back in every iteration.
    """

    def __init__(self, count: tf.Tensor, length: int):
        """Takes how many rows there will be, int32 [], and of how many numbers."""
        self._count, self._length = count, length
        with tf.device("CPU:0"):
            self._handle, self._flow = tf.raw_ops.TensorArrayV3(
                size=count, dtype=tf.float64, element_shape=[length]
            )

    def write(self, i: tf.Tensor, row: list[tf.Tensor]) -> None:
        """Writes row `i`, of numbers on the host."""
        with tf.device("CPU:0"):
            tf.raw_ops.TensorArrayWriteV3(
                handle=self._handle, index=i, value=tf.stack(row), flow_in=0.0
            )

    def columns(self) -> list[tf.Tensor]:
        """Returns the columns, float64 [count], on the host."""
        with tf.device("CPU:0"):
            rows = tf.raw_ops.TensorArrayGatherV3(
                handle=self._handle,
                indices=tf.range(self._count),
                flow_in=self._flow,
                dtype=tf.float64,
                element_shape=[self._length],
            )
            return tf.unstack(rows, self._length, axis=1)


def on_next(
    one_step: Callable[..., Metrics], iterator: nests.Batches
) -> Callable[[], Metrics]:
    """Makes the function that takes a step on the next batch, for `stack_steps`.

    Args:
      one_step: of a batch.
      iterator: of batches.

    Returns:
      A function that returns the metrics of the step, and `FETCHES`.
    """

    def call() -> Metrics:
        with tf.device("CPU:0"):
            began = _now()
        with tf.control_dependencies([began]):
            batch = next(iterator)
        parts = tf.nest.flatten(batch, expand_composites=True)
        with tf.device("CPU:0"), tf.control_dependencies(parts):
            ended = _now()
        return one_step(*batch) | {"fetch_began": began, "fetch_ended": ended}

    return call


def _now() -> tf.Tensor:
    """The time, float64 []; NaN with deterministic operations, which have no clock."""
    if config.is_op_determinism_enabled():
        return tf.constant(math.nan, tf.float64)
    return tf.timestamp()


@contextlib.contextmanager
def told_of_the_end(steps: int, step: tf.Variable) -> Iterator[None]:
    """Inside, an iterator that ends too soon is told as that.

    Args:
      steps: how many batches are wanted.
      step: int64 [], counts the steps taken; read on an error alone.
    """
    try:
        yield
    except tf.errors.OutOfRangeError as error:
        raise tf.errors.OutOfRangeError(
            error.node_def,
            error.op,
            f"`iterator` ended before `steps` ({int(steps)}) batches: a step was taken "
            f"on each that it had, and the state is that of step {int(step.numpy())}.",
        ) from error
