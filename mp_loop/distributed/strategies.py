"""One step on many devices, on TensorFlow's own engine (`tf.distribute`).

    strategy = distribution.make("multi_worker")   # before TensorFlow does anything
    with strategy.scope():
        model = ...                                # variables on every device
        step = mp_loop.TrainStep(model, optimizer, loss)

Every replica computes the loss and the gradients of its share of the batch.
One all-reduce makes them those of the batch, and from there on every replica
does the same arithmetic on the same numbers, so that all stay bitwise equal:

    loss, scaled_grads = of the replica's own rows
    unite(loss, scaled_grads, statistics)          # the one communication
    finite? -> update, or nothing at all           # the same on every replica

An overflow on one replica makes the sum not finite, and so every replica
skips. What forward passes wrote (batch-norm statistics) is averaged as well:
each replica normalizes by its own rows' statistics, and the moving ones are
the mean of what the replicas would have stored.

Against one device on the same batch (without batch norm, or with it
synchronized), all that differs is the order in which rows are added: see
`rounding_bound`. Dropout differs, for the replicas draw numbers of their own.
"""

from __future__ import annotations

import contextlib
import functools
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.distribute import distribute_lib

from mp_loop.config import choices

# Between the seeds of two replicas; far from what users choose.
_SEED_STRIDE = 2**40
# After the roll call, which all workers have answered.
_START_SECONDS = 300


class ReplicasDiffer(RuntimeError):
    """Replicas no longer hold the same bits; the message is one line."""


def make(name: str) -> tf.distribute.Strategy:
    """Makes the strategy that `--strategy` names.

    Args:
      name: "none"; "mirrored": all GPUs of this machine, or all its logical CPUs
        where there is none; "multi_worker": all GPUs of every worker of
        `cluster.task()`, or their CPUs. The last must be made before TensorFlow
        runs anything, and waits for the other workers.
    """
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU")
        devices = devices or tf.config.list_logical_devices("CPU")
        return _mirrored(*(device.name for device in devices))
    if name == "multi_worker":
        with _alarm(_START_SECONDS):
            return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


@functools.cache  # Two on the same devices would mix up their messages.
def _mirrored(*devices: str) -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy(devices)


@contextlib.contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    """Inside, the process is killed by SIGALRM after so many seconds.

    TensorFlow waits for workers inside one call that holds Python's lock: no
    handler, no thread and no other signal reaches it there.
    """
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def lost_worker(error: BaseException) -> str:
    """Tells in one line what an error says of a worker that is gone, if it does."""
    kinds = (
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.InternalError,
        tf.errors.UnavailableError,
    )
    if not isinstance(error, kinds):
        return ""
    # Of pages of text, the part that names the cause.
    said = " ".join(str(error).split())
    found = re.search(r"Collective ops is aborted by: (.{,200})", said)
    if found:
        return f"another worker stopped: {found[1]}..."
    if "CoordinationService" in said or "Collective" in said:
        return "another worker stopped: the chief does not answer."
    return ""


def synchronize_batch_norm(model: keras.Model) -> None:
    """Makes every batch norm of a model one over the whole batch.

    Must come before the step is made. The saved model says `synchronized` too.
    """
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True


def batches(
    strategy: tf.distribute.Strategy, make: Callable[[int, int, int], tf.data.Dataset]
) -> Any:
    """Makes a data set whose batches lie on the replicas.

    Args:
      strategy: from `make`.
      make: of (worker, workers, replicas), returns the shares of this worker's
        replicas in turn, each a batch of its own.

    Returns:
      What `Replicas.each` takes, without end.
    """

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        dataset = make(
            context.input_pipeline_id,
            context.num_input_pipelines,
            context.num_replicas_in_sync,
        )
        # If it could end, the workers would have to agree on it before each batch.
        return dataset.repeat()

    return strategy.distribute_datasets_from_function(of_worker)


class Replicas:
    """The replicas of the strategy in whose scope this is made; one without.

    Attributes:
      strategy: the strategy, or None.
      count: replicas over all workers.
    """

    def __init__(self, all_reduce_dtype: str = "float32"):
        """Looks at the current strategy.

        Args:
          all_reduce_dtype: "float32"; or "float16": gradients of float16 weights
            travel in 16 bits.

        Raises:
          ValueError: unknown dtype.
        """
        if all_reduce_dtype not in choices.ALL_REDUCE_DTYPES:
            raise ValueError(
                f"`all_reduce_dtype` ({all_reduce_dtype}) must be one of "
                f"{choices.ALL_REDUCE_DTYPES}."
            )
        has_strategy = tf.distribute.has_strategy()
        self.strategy = tf.distribute.get_strategy() if has_strategy else None
        self.count = self.strategy.num_replicas_in_sync if has_strategy else 1
        self._half = all_reduce_dtype == "float16"

    def refuse(
        self, model: keras.Model, accumulate_steps: int, **for_one_device: bool
    ) -> None:
        """Refuses what cannot be done under a strategy.

        Raises:
          ValueError: by name.
        """
        if self.strategy is None:
            return
        for name, value in for_one_device.items():
            if value:
                raise ValueError(f"`{name}` ({value}) is for one device.")
        layers = model._flatten_layers()
        if accumulate_steps > 1 and any(
            getattr(layer, "synchronized", False) for layer in layers
        ):
            raise ValueError(
                f"`accumulate_steps` ({accumulate_steps}) must be 1 with synchronized "
                "batch norm: its all-reduce cannot stand inside a loop."
            )

    def check(self, name: str, variable: Any) -> None:
        """Refuses what was made outside the scope of the strategy, or in another.

        Raises:
          ValueError: by name.
        """
        owner = getattr(variable.value, "distribute_strategy", None)
        if owner is not self.strategy:
            mine, its = (
                type(strategy).__name__ if strategy else "none"
                for strategy in (self.strategy, owner)
            )
            raise ValueError(
                f"`{name}` ({its}) must be made in the scope of the strategy that the "
                f"step is made in ({mine})."
            )

    def each(
        self, function: Callable[..., Any], even: bool = True
    ) -> Callable[..., Any]:
        """Returns a function that calls `function` on every replica.

        Args:
          function: of tensors, batch first, or None; returns tensors that are
            equal on all replicas.
          even: whether a batch must be divisible.

        Returns:
          A function for use in a `tf.function`. It takes what a distributed
          data set holds, or whole batches, of which each replica takes its rows,
          and returns what the first replica of this process returned.
        """
        if self.strategy is None:
            return function

        @functools.wraps(function)
        def run(*batch: Any) -> Any:
            leaf = tf.nest.flatten(batch)[0]
            whole = not isinstance(leaf, tf.distribute.DistributedValues)
            sizes = [x.shape[0] for x in self.strategy.experimental_local_results(leaf)]
            known = None not in sizes

            def on_replica(*batch: Any) -> Any:
                batch = self._own_rows(batch) if whole else batch
                if even and not known:
                    self._refuse_uneven(batch)
                return function(*batch)

            if (
                even
                and known
                and (whole and sizes[0] % self.count or len(set(sizes)) > 1)
            ):
                raise ValueError(
                    f"the batch (rows: {sizes}) must be shared evenly among the "
                    f"{self.count} replicas."
                )
            results = self.strategy.run(on_replica, args=batch)
            return tf.nest.map_structure(self._first, results)

        return run

    @contextlib.contextmanager
    def own_seeds(self, seeds: Sequence[tf.Variable]) -> Iterator[None]:
        """Inside, every replica draws its own random numbers; the first as alone.

        Args:
          seeds: int64 [2] (seed, counter), equal on all replicas before and after.
        """
        if self.count == 1 or not seeds:
            yield
            return
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        offset = tf.cast(replica, tf.int64) * tf.constant([_SEED_STRIDE, 0], tf.int64)
        for seed in seeds:
            seed.assign_add(offset)
        yield
        for seed in seeds:
            seed.assign_sub(offset)

    def share(self, scale: tf.Tensor) -> tf.Tensor:
        """Returns what each replica multiplies its loss by, float32 [].

        Its loss is the mean over its own rows. With this part of the loss scale every
        row's gradient is the number that it is on one device, overflows included,
        and gradients need only be added.
        """
        return scale if self.count == 1 else scale / self.count

    def unite(
        self,
        loss: tf.Tensor,
        grads: Sequence[tf.Tensor | None],
        from_float16: Sequence[bool],
        written: Sequence[tf.Variable],
    ) -> tuple[tf.Tensor, list[tf.Tensor | None]]:
        """Makes the replicas' results one: all that they tell each other in a step.

        Args:
          loss: float32 [], the mean over this replica's rows.
          grads: float32, of the loss times its share of the scale; or None.
          from_float16: of each gradient, whether it was a float16 number.
          written: variables that the forward pass wrote; they are given the mean,
            or the first replica's value if they are not of a floating type.

        Returns:
          The mean loss and the sums of the gradients, float32, equal on all replicas.
        """
        if self.count == 1:
            return loss, list(grads)
        present = {i: grad for i, grad in enumerate(grads) if grad is not None}
        half = {
            i: tf.cast(grad, tf.float16)  # as exact as before, unless accumulated
            for i, grad in present.items()
            if self._half and from_float16[i]
        }
        wide = {i: grad for i, grad in present.items() if i not in half}
        floats = [v for v in written if v.dtype.is_floating]
        values = [tf.identity(v) for v in floats]
        loss, wide, values = _all_sum((loss, wide, values))
        half = _all_sum(half) if half else {}
        for variable, value in zip(floats, values, strict=True):
            variable.assign(value / self.count)
        _give([v for v in written if not v.dtype.is_floating])
        sums = wide | {i: tf.cast(total, tf.float32) for i, total in half.items()}
        return loss / self.count, [sums.get(i) for i in range(len(grads))]

    def _own_rows(self, batch: Any) -> Any:
        """The rows of a whole batch that are this replica's."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group

        def rows(x: Any) -> Any:
            if x is None:
                return None
            x = tf.convert_to_tensor(x)
            size = tf.shape(x)[0]
            first, end = (
                replica * size // self.count,
                (replica + 1) * size // self.count,
            )
            return x[first:end]

        with tf.device("CPU:0"):  # only these rows go to the replica's device
            return tf.nest.map_structure(rows, batch)

    def _refuse_uneven(self, batch: Any) -> None:
        """Ends the step where replicas have unequal numbers of rows."""
        rows = tf.cast(tf.shape(tf.nest.flatten(batch)[0])[0], tf.float32)
        tf.debugging.assert_equal(
            _all_sum(rows),
            rows * self.count,
            f"the batch must be shared evenly among the {self.count} replicas.",
        )

    def _first(self, value: Any) -> Any:
        return self.strategy.experimental_local_results(value)[0]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, Keras takes it that there is one device.

    Its losses would divide by the number of replicas (its loss functions would
    not), and its optimizers would add up the gradients of all.
    """
    distribute_lib._push_per_thread_mode(distribute_lib._get_default_replica_mode())
    try:
        yield
    finally:
        distribute_lib._pop_per_thread_mode()


def once(function: Callable[..., None], *tensors: Any) -> None:
    """Calls a function once for all replicas, on tensors that are equal on them.

    Where Keras' optimizers work: on a replica they would add up the gradients of
    all, and clip and average wrongly.

    Args:
      function: what it does to variables is done on every device.
      *tensors: its arguments, in structures; taken from the first replica.
    """
    if not tf.distribute.has_strategy():
        return function(*tensors)

    def call(strategy: tf.distribute.Strategy, *tensors: Any) -> None:
        first = [strategy.experimental_local_results(x)[0] for x in tensors]
        with alone():
            function(*first)

    tf.distribute.get_replica_context().merge_call(call, args=tensors)
    return None


def rounding_bound(rate: float, steps: int, terms: int, largest: float) -> float:
    """Bounds how far float32 weights are from those of one device, under SGD.

    A sum of n float32 numbers, in any order, is off by at most (n - 1) u times the
    sum of their magnitudes (u = 2^-24; Higham 2002, section 4.2). So two orders of a
    batch's mean gradient differ by at most 2 (n - 1) u G, and weights after T steps
    by T times the learning rate times that; to first order, that is, while the
    steps are too few for the loss' curvature to magnify the difference.

    Args:
      rate: learning rate.
      steps: T.
      terms: n, what is added for one gradient.
      largest: G, the largest magnitude of one of them.
    """
    return rate * steps * 2 * (terms - 1) * 2.0**-24 * largest


class Workers:
    """What the workers of a strategy tell each other outside of steps.

    Every method is a meeting: all workers must call it, in the same order.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        """Takes the strategy that `make` made."""
        self._strategy = strategy
        self._many = strategy.num_replicas_in_sync > 1
        self._count = tf.function(functools.partial(self._each, _sum))
        self._differing = tf.function(functools.partial(self._each, _differing))
        self._give = tf.function(functools.partial(self._each, _give))

    def any(self, number: int) -> int:
        """Returns the largest number that any worker says, from 0 to 64."""
        if self._strategy.cluster_resolver is None:  # one process
            return number
        return int(tf.where(self._count(tf.one_hot(number, 65)) > 0)[-1, 0])

    def give_first(self, variables: Sequence[tf.Variable]) -> None:
        """Gives the first worker's values to all, bit for bit."""
        if self._strategy.cluster_resolver is not None:
            self._give(variables)

    def check_equal(self, variables: Sequence[tf.Variable]) -> None:
        """Compares a fingerprint of variables over all replicas.

        Raises:
          ReplicasDiffer: names the first that differs.
        """
        if not self._many:
            return
        counts = self._differing(variables).numpy()
        for count, variable in zip(counts, variables, strict=True):
            if count:
                raise ReplicasDiffer(
                    f"{count} of {self._strategy.num_replicas_in_sync} replicas hold "
                    f"another {variable.name} than the first: they must be of the "
                    "same kind of device."
                )

    def _each(self, function: Callable[..., Any], argument: Any) -> Any:
        """Runs it on every replica; returns what the first of this worker returns."""
        # A closure: as an argument, a variable would be taken apart.
        result = self._strategy.run(lambda: function(argument))
        if result is None:
            return None
        return self._strategy.experimental_local_results(result)[0]


class Silence:
    """Takes every call and does nothing: the files of a worker that writes none."""

    failure = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def _all_sum(value: Any) -> Any:
    """Adds up a tensor, or each of a list, over all replicas."""
    replica = tf.distribute.get_replica_context()
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _sum(flags: tf.Tensor) -> tf.Tensor:
    return _all_sum(tf.cast(flags, tf.int64))


def _differing(values: Sequence[Any]) -> tf.Tensor:
    """Counts the replicas whose value is not the first's; int64 [values]."""
    prints = tf.stack([_fingerprint(value) for value in values])
    return _sum(tf.not_equal(_of_first(prints), prints))


def _give(variables: Sequence[tf.Variable]) -> None:
    for variable in variables:
        variable.assign(_from_bits(_of_first(_to_bits(variable)), variable.dtype))


def _of_first(value: tf.Tensor) -> tf.Tensor:
    """Returns the first replica's integers on all of them."""
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return _all_sum(tf.where(tf.equal(replica, 0), value, tf.zeros_like(value)))


def _to_bits(value: Any) -> tf.Tensor:
    """The bits as int64, which every all-reduce adds exactly."""
    value = tf.convert_to_tensor(value)
    if value.dtype.is_floating:
        value = tf.bitcast(value, _SAME_SIZE[value.dtype.size])
    return tf.cast(value, tf.int64)


def _from_bits(bits: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    if not dtype.is_floating:
        return tf.cast(bits, dtype)
    return tf.bitcast(tf.cast(bits, _SAME_SIZE[dtype.size]), dtype)


def _fingerprint(value: Any) -> tf.Tensor:
    """Adds up the bits, each number times an odd one of its own; int64 []."""
    bits = tf.reshape(_to_bits(value), [-1])
    return tf.reduce_sum(bits * (2 * tf.range(tf.size(bits, tf.int64)) + 1))


_SAME_SIZE = {2: tf.int16, 4: tf.int32, 8: tf.int64}
