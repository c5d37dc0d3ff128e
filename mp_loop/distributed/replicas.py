"""How replicas share one step, on TensorFlow's own engine (`tf.distribute`).

    replicas = Replicas()                            # in the scope of the strategy
    run = replicas.each(one_step)                    # calls one_step on every replica

    def one_step(inputs, labels):                    # of the replica's own rows
        loss, scaled_grads = ...                     # at `replicas.share(loss_scale)`
        means, scaled_grads = replicas.unite(means, scaled_grads, ...)
        ...                                          # the same on every replica

Every replica computes the loss and the gradients of its share of the batch.
One all-reduce makes them those of the whole batch. From there on every replica
does the same arithmetic on the same numbers, so that all stay bitwise equal.

An overflow on one replica makes the sum non-finite, so that every replica skips
the update. What the forward pass wrote (batch-norm statistics) is averaged as
well: each replica normalizes by the statistics of its own rows, and the moving
statistics are the mean of what the replicas would have stored.

Compared with one device on the same batch (without batch norm, or with it
synchronized), only the order in which rows are added differs: see
`rounding_bound`. Dropout differs, because each replica draws its own masks.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf
from tensorflow.python.distribute import distribute_lib

from mp_loop.config import choices
from mp_loop.distributed import collectives, nests

# Between the seeds of two replicas; far from what users choose.
_SEED_STRIDE = 2**40


class Replicas:
    """The replicas of the strategy in whose scope this is made.

    Attributes:
      strategy: the strategy; None outside of a strategy's scope.
      count: replicas over all workers; 1 without a strategy.
    """

    def __init__(self, all_reduce_dtype: str = "float32"):
        """Reads the current strategy.

        Args:
          all_reduce_dtype: "float32"; or "float16": gradients of float16 weights
            are all-reduced in 16 bits.

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

    def check_supported(
        self, model: keras.Model, accumulate_steps: int, **for_one_device: bool
    ) -> None:
        """Refuses arguments that are not supported under a strategy.

        Args:
          model: the model that will be trained.
          accumulate_steps: micro-batches in a step.
          **for_one_device: arguments that must be false under a strategy.

        Raises:
          ValueError: names the argument.
        """
        if self.strategy is None:
            return
        for name, value in for_one_device.items():
            if value:
                raise ValueError(
                    f"`{name}` ({value}) is for one device, not for a strategy."
                )
        layers = model._flatten_layers()
        if accumulate_steps > 1 and any(
            getattr(layer, "synchronized", False) for layer in layers
        ):
            raise ValueError(
                f"`accumulate_steps` ({accumulate_steps}) must be 1 with synchronized "
                "batch norm: its all-reduce cannot run inside a loop."
            )

    def check_scope(self, name: str, variable: keras.Variable) -> None:
        """Refuses a variable that was made outside the scope of the strategy.

        Raises:
          ValueError: names the argument that holds the variable.
        """
        owner = getattr(variable.value, "distribute_strategy", None)
        if owner is not self.strategy:
            mine, its = (
                type(strategy).__name__ if strategy else "none"
                for strategy in (self.strategy, owner)
            )
            raise ValueError(
                f"`{name}` ({its}) must be made in the scope of the step's strategy "
                f"({mine})."
            )

    def each(
        self, function: Callable[..., nests.Nest], even: bool = True
    ) -> Callable[..., nests.Nest]:
        """Returns a function that calls `function` on every replica.

        Args:
          function: takes tensors whose first axis is the batch, or None; returns
            tensors that are equal on all replicas.
          even: whether all replicas must get equally many rows.

        Returns:
          A function for use in a `tf.function`. It takes elements of a distributed
          data set, or whole batches, of which each replica takes its own rows. It
          returns what the first replica of this process returned.
        """
        if self.strategy is None:
            return function

        @functools.wraps(function)
        def run(*batch: nests.Nest) -> nests.Nest:
            leaf = tf.nest.flatten(batch)[0]
            whole = not isinstance(leaf, tf.distribute.DistributedValues)
            sizes = [x.shape[0] for x in self.strategy.experimental_local_results(leaf)]
            known = None not in sizes

            def on_replica(*batch: nests.Nest) -> nests.Nest:
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
        """Inside, every replica draws its own random numbers.

        The first replica draws what a single device would draw.

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
        """Returns the factor that each replica applies to its loss, float32 [].

        A replica's loss is the mean over its own rows. With this share of the loss
        scale the gradient of every row is the same number as on one device,
        overflows included, and the replicas' gradients need only be added.
        """
        return scale if self.count == 1 else scale / self.count

    def unite(
        self,
        means: dict[str, tf.Tensor],
        grads: Sequence[tf.Tensor | None],
        from_float16: Sequence[bool],
        written: Sequence[tf.Variable],
    ) -> tuple[dict[str, tf.Tensor], list[tf.Tensor | None]]:
        """Combines the replicas' results: the only exchange between them in a step.

        Args:
          means: float32 [] by name, over this replica's rows.
          grads: of the loss times `share(scale)`, float32 or 16 bits; or None.
          from_float16: for each gradient, whether it was computed in float16.
          written: variables that the forward pass wrote. They are assigned the mean
            over the replicas, or the first replica's value if they are not of a
            floating type.

        Returns:
          The means over all rows and the sums of the gradients, float32, equal on all
          replicas; of one replica, the gradients as they are.
        """
        if self.count == 1:
            return means, list(grads)
        present = {i: grad for i, grad in enumerate(grads) if grad is not None}
        half = {
            # float32 -> float16: exact, unless micro-batches were accumulated
            i: tf.cast(grad, tf.float16)
            for i, grad in present.items()
            if self._half and from_float16[i]
        }
        wide = {
            i: tf.cast(grad, tf.float32)  # 16 bits -> float32, where they were
            for i, grad in present.items()
            if i not in half
        }
        floats = [v for v in written if v.dtype.is_floating]
        values = [tf.identity(v) for v in floats]
        # First what need not wait for the end of the backward pass.
        half = collectives.all_sum(half) if half else {}
        means, wide, values = collectives.all_sum((means, wide, values))
        for variable, value in zip(floats, values, strict=True):
            variable.assign(value / self.count)
        collectives.assign_from_first([v for v in written if not v.dtype.is_floating])
        sums = wide | {i: tf.cast(total, tf.float32) for i, total in half.items()}
        means = {name: total / self.count for name, total in means.items()}
        return means, [sums.get(i) for i in range(len(grads))]

    def _own_rows(self, batch: nests.Batch) -> nests.Batch:
        """Returns this replica's rows of a whole batch."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group

        def rows(x: nests.Nest) -> tf.Tensor | None:
            if x is None:
                return None
            x = tf.convert_to_tensor(x)
            size = tf.shape(x)[0]
            first, end = (
                replica * size // self.count,
                (replica + 1) * size // self.count,
            )
            own = x[first:end]
            if x.shape[0] is not None and x.shape[0] % self.count == 0:
                own.set_shape([x.shape[0] // self.count, *x.shape[1:]])
            return own

        with tf.device("CPU:0"):  # only these rows go to the replica's device
            return tf.nest.map_structure(rows, batch)

    def _refuse_uneven(self, batch: nests.Batch) -> None:
        """Fails at run time if replicas have unequal numbers of rows."""
        rows = tf.cast(tf.shape(tf.nest.flatten(batch)[0])[0], tf.float32)
        tf.debugging.assert_equal(
            collectives.all_sum(rows),
            rows * self.count,
            f"the batch must be shared evenly among the {self.count} replicas.",
        )

    def _first(self, value: nests.Nest) -> nests.Nest:
        return self.strategy.experimental_local_results(value)[0]


@contextlib.contextmanager
def as_one_device() -> Iterator[None]:
    """Inside, Keras behaves as without a strategy.

    Under a strategy its loss objects divide by the number of replicas (its loss
    functions do not), and its optimizers add up the gradients of all replicas.
    """
    distribute_lib._push_per_thread_mode(distribute_lib._get_default_replica_mode())
    try:
        yield
    finally:
        distribute_lib._pop_per_thread_mode()


def assign(variable: tf.Variable, value: tf.Tensor) -> None:
    """Assigns to this replica's copy of a variable, whatever its aggregation.

    For values that are equal on all replicas: `variable.assign` would exchange them.
    """
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)


def call_once(function: Callable[..., None], *tensors: nests.Nest) -> None:
    """Calls a function once for all replicas, on tensors that are equal on them.

    This is how Keras' optimizers are called: on each replica they would add up the
    gradients of all replicas, and clip and average wrongly.

    Args:
      function: its assignments to variables are made on every device.
      *tensors: its arguments, in structures; those of the first replica are passed.
    """
    if not tf.distribute.has_strategy():
        return function(*tensors)

    def call(strategy: tf.distribute.Strategy, *tensors: nests.Nest) -> None:
        first = [strategy.experimental_local_results(x)[0] for x in tensors]
        with as_one_device():
            function(*first)

    tf.distribute.get_replica_context().merge_call(call, args=tensors)
    return None


def rounding_bound(rate: float, steps: int, terms: int, largest: float) -> float:
    """Bounds the difference between float32 weights and those of one device, for SGD.

    A sum of n float32 numbers, in any order, is off by at most (n - 1) u times the
    sum of their magnitudes (u = 2^-24; Higham 2002, section 4.2). So two orders of a
    batch's mean gradient differ by at most 2 (n - 1) u G, and weights after T steps
    by T times the learning rate times that. This is to first order: the steps must
    be too few for the curvature of the loss to magnify the difference.

    Args:
      rate: learning rate.
      steps: T.
      terms: n, how many numbers are added for one gradient.
      largest: G, the largest magnitude among them.
    """
    return rate * steps * 2 * (terms - 1) * 2.0**-24 * largest
