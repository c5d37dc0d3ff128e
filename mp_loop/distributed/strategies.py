"""The strategies of `tf.distribute` that `--strategy` names.

    strategy = strategies.make("multi_worker")   # before TensorFlow runs anything
    with strategy.scope():
        model = ...                              # its variables are on every device
        step = mp_loop.TrainStep(model, optimizer, loss)

What replicas exchange in a step is in `replicas`, what workers exchange between
steps in `workers`.
"""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

# How long `MultiWorkerMirroredStrategy` may take to start. Every worker has answered
# the handshake by then.
_START_SECONDS = 300


def make(name: str) -> tf.distribute.Strategy:
    """Makes the strategy that `--strategy` names.

    Args:
      name: "none"; "mirrored": all GPUs of this machine, or all its logical CPUs
        if there is no GPU; "multi_worker": all GPUs of every worker of
        `cluster.task()`, or their CPUs. "multi_worker" must be made before
        TensorFlow runs anything, and waits for the other workers.
    """
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU")
        devices = devices or tf.config.list_logical_devices("CPU")
        return _mirrored(*(device.name for device in devices))
    if name == "multi_worker":
        with _alarm(_START_SECONDS):
            return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


@functools.cache  # Two strategies on the same devices would mix up their messages.
def _mirrored(*devices: str) -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy(devices)


@contextlib.contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    """Inside, SIGALRM kills the process after so many seconds.

    TensorFlow waits for workers inside one call that holds Python's global lock: no
    signal handler and no other thread can run meanwhile.
    """
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def synchronize_batch_norm(model: keras.Model) -> None:
    """Makes every batch norm of a model use the statistics of the whole batch.

    Must be called before the step is made. The saved model is `synchronized` too.
    """
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True


def batches(
    strategy: tf.distribute.Strategy,
    make: Callable[[tf.distribute.InputContext], tf.data.Dataset],
) -> tf.distribute.DistributedDataset:
    """Makes a data set whose batches are divided among the replicas.

    Args:
      strategy: from `make`.
      make: returns the shares of one worker's replicas in turn, each as one batch.

    Returns:
      A distributed data set for `Replicas.each`; it repeats without end.
    """
    # If it could end, the workers would have to agree on it before each batch.
    return strategy.distribute_datasets_from_function(
        lambda context: make(context).repeat()
    )
