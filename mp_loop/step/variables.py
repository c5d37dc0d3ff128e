"""The variables of a step: which there are, and which the forward pass writes.

    variables = of_step(model, twin)
    before = variables.remember()
    ... forward and backward pass, traced ...
    written = variables.written(before)        # statistics, to be restored in a skip
    for variable, old in variables.with_variables(written): ...

Each is in one place: trained, frozen, or a random state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from mp_loop.precision import pairs, recurrent_states
from mp_loop.step import train_state

# What each writable variable held before the forward pass; None: it is not written.
Remembered = list[tf.Tensor | None]

# The operations that only read what a resource handle stands for.
_READS = ("ReadVariableOp", "ResourceGather")


@dataclasses.dataclass(frozen=True)
class StepVariables:
    """The variables of a model and its twin, by what a step does to them.

    Attributes:
      masters: float32, what is trained.
      workings: for each master, what forward and backward read: a 16-bit copy, or
        the master itself.
      regularized: places of the masters whose regularizer the step computes itself:
        those that the twin does not hold, and whose copies have none.
      frozen: `(original, copy)` of what has a 16-bit copy and is not trained.
      others: weights without gradient (batch-norm statistics, frozen layers).
      seeds: states of random generators.
      writable: of `others` and `masters`, those that the twin's forward pass could
        write to. In most models these are the statistics alone.
    """

    masters: tuple[keras.Variable, ...]
    workings: tuple[keras.Variable, ...]
    regularized: tuple[int, ...]
    frozen: tuple[pairs.Pair, ...]
    others: tuple[keras.Variable, ...]
    seeds: tuple[keras.Variable, ...]
    writable: tuple[tf.Variable, ...]

    def recast(self) -> None:
        """Rounds every trained master to its 16-bit copy."""
        for master, working in zip(self.masters, self.workings, strict=True):
            if working is not master:
                value = tf.cast(master.value, working.dtype)  # float32 -> 16 bits
                working.value.assign(value)

    def recast_all(self) -> None:
        """Rounds what is not trained as well; for weights that were set by hand."""
        self.recast()
        for original, copy in self.frozen:
            copy.assign(keras.ops.cast(original, copy.dtype))

    @property
    def from_float16(self) -> list[bool]:
        """For each master, whether its gradient was a float16 number."""
        regularized = set(self.regularized)
        return [
            working.dtype == "float16" and place not in regularized
            for place, working in enumerate(self.workings)
        ]

    def state(
        self, slots: Sequence[tf.Variable], loss_scale: NamedTuple
    ) -> train_state.TrainState:
        """Makes the state of a training of these variables.

        Args:
          slots: the optimizer's variables.
          loss_scale: the rule's first state.
        """
        return train_state.TrainState(
            master_weights=[v.value for v in self.masters],
            working_weights=[v.value for v in self.workings],
            other_weights=[v.value for v in self.others],
            seeds=[v.value for v in self.seeds],
            slots=slots,
            loss_scale=loss_scale,
        )

    def remember(self) -> Remembered:
        """Returns what the writable variables hold now."""
        return [tf.identity(variable) for variable in self.writable]

    def with_variables(self, before: Remembered) -> list[tuple[tf.Variable, tf.Tensor]]:
        """Returns the written variables, each with what it held before."""
        pairs = zip(self.writable, before, strict=True)
        return [(variable, old) for variable, old in pairs if old is not None]

    def written(self, before: Remembered) -> Remembered:
        """Returns of `before` what the graph traced since then may have written to.

        Most models write to a few variables, many to none, and every variable that
        is checked and restored costs a pass over it in every step. Whether a layer
        writes (batch norm in training does, frozen batch norm does not, a layer that
        nobody here knows may) is seen in the graph itself: a variable enters it as a
        handle, and one whose handle feeds only reads cannot have been written. What
        is not known to be a read counts as a write, a call of another function too.
        """
        if tf.executing_eagerly():
            return before
        graph = tf.compat.v1.get_default_graph()
        inner = {
            id(outer): handle
            for outer, handle in zip(
                graph.external_captures, graph.internal_captures, strict=True
            )
        }

        def is_written(variable: tf.Variable) -> bool:
            handle = inner.get(id(variable.handle))
            uses = [] if handle is None else handle.consumers()
            return any(operation.type not in _READS for operation in uses)

        return [
            old if is_written(variable) else None
            for variable, old in zip(self.writable, before, strict=True)
        ]


def of_step(model: keras.Model, twin: keras.Model) -> StepVariables:
    """Sorts the variables of a float32 model and of the twin that computes for it."""
    working_of = {id(m): working for m, working in pairs.of_weights(model, twin)}
    masters = model.trainable_variables
    workings = [working_of[id(master)] for master in masters]
    trained = {id(v) for v in [*masters, *workings]}
    states = recurrent_states.of(twin)
    carried = [*recurrent_states.of(model), *states]
    others = _unique([*model.weights, *twin.weights, *carried], but=trained)
    weights = trained | {id(v) for v in others}
    read = {id(v) for v in [*twin.weights, *states]}
    return StepVariables(
        masters=tuple(masters),
        workings=tuple(workings),
        regularized=tuple(
            place
            for place, master in enumerate(masters)
            if master.regularizer is not None and id(master) not in read
        ),
        frozen=tuple(
            (weight, working_of[id(weight)])
            for weight in model.weights
            if id(weight) not in trained and working_of[id(weight)] is not weight
        ),
        others=tuple(others),
        seeds=tuple(_unique([*model.variables, *twin.variables], but=weights)),
        writable=tuple(v.value for v in [*others, *masters] if id(v) in read),
    )


def all_finite(variables: Sequence[tf.Variable]) -> tf.Tensor:
    """Returns bool []: a finite loss can leave an infinite variance behind."""
    values = [tf.reshape(v, [-1]) for v in variables if v.dtype.is_floating]
    by_dtype = {v.dtype: [w for w in values if w.dtype == v.dtype] for v in values}
    checks = [
        tf.reduce_all(tf.math.is_finite(tf.concat(v, 0))) for v in by_dtype.values()
    ]
    return tf.reduce_all(checks) if checks else tf.constant(True)


def _unique(variables: Sequence[keras.Variable], but: set[int]) -> list[keras.Variable]:
    """Returns the distinct variables whose id is not in `but`."""
    kept = {id(v): v for v in variables if id(v) not in but}
    return list(kept.values())
