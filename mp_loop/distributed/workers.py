"""What workers exchange between steps, and the errors that mean one is lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import tensorflow as tf

from mp_loop.distributed import collectives, nests


class ReplicasDiffer(RuntimeError):
    """Replicas no longer hold the same bits; the message is one line."""


class Workers:
    """The workers of a strategy, outside of steps.

    Every method is collective: all workers must call it, in the same order.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        """Takes the strategy that `strategies.make` returned."""
        self._strategy = strategy
        self._many = strategy.num_replicas_in_sync > 1
        self._count = self._on_replicas(collectives.count)
        self._count_differing = self._on_replicas(collectives.count_differing)
        self._assign_from_first = self._on_replicas(collectives.assign_from_first)

    def largest(self, number: int) -> int:
        """Returns the largest number that any worker passes, from 0 to 64."""
        if self._strategy.cluster_resolver is None:  # one process
            return number
        return int(tf.where(self._count(tf.one_hot(number, 65)) > 0)[-1, 0])

    def copy_from_first(self, variables: Sequence[tf.Variable]) -> None:
        """Copies the first worker's values to all workers, bit for bit."""
        if self._strategy.cluster_resolver is not None:
            self._assign_from_first(variables)

    def check_equal(self, variables: Sequence[tf.Variable]) -> None:
        """Compares fingerprints of variables between all replicas.

        Raises:
          ReplicasDiffer: names the first variable that differs.
        """
        if not self._many:
            return
        counts = self._count_differing(variables).numpy()
        for count, variable in zip(counts, variables, strict=True):
            if count:
                raise ReplicasDiffer(
                    f"{count} of {self._strategy.num_replicas_in_sync} replicas hold "
                    f"another value of {variable.name} than the first replica: all "
                    "devices must be of the same kind."
                )

    def _on_replicas(
        self, function: Callable[[nests.Nest], nests.Nest]
    ) -> Callable[[nests.Nest], nests.Nest]:
        """Runs a function on every replica; returns this worker's first result."""

        @tf.function(autograph=False)
        def run(argument: nests.Nest) -> nests.Nest:
            # A closure: as an argument, a variable would be replaced by its replica.
            result = self._strategy.run(lambda: function(argument))
            if result is None:
                return None
            return self._strategy.experimental_local_results(result)[0]

        return run


def lost_worker(error: BaseException) -> str:
    """Describes the loss of a worker in one line; "" if the error means none."""
    kinds = (
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.InternalError,
        tf.errors.UnavailableError,
    )
    if not isinstance(error, kinds):
        return ""
    # TensorFlow's message takes pages: only the part that names the cause.
    said = " ".join(str(error).split())
    found = re.search(r"Collective ops is aborted by: (.{,200})", said)
    if found:
        return f"another worker stopped: {found[1]}..."
    if "CoordinationService" in said or "Collective" in said:
        return "another worker stopped: the chief does not answer."
    return ""
