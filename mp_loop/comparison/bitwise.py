"""Whether two loops are equal bit for bit: their steps are taken side by side.

    proof = prove(ours, theirs, batches, steps=1000)
    print(proof)      # "1000 steps, 33 of them skipped: ... bit for bit."

`ours` is a `TrainStep` with `keras_arithmetic=True` and the `keras` preset,
`theirs` a `KerasStep`, both made from equal models. The kernels must be
deterministic (`tf.config.experimental.enable_op_determinism()`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from mp_loop.distributed import nests
from mp_loop.precision import pairs
from mp_loop.step import keras_step, train_step

_METRICS = ("loss", "grads_finite", "loss_scale", "learning_rate")
_SAME_SIZE = {2: tf.int16, 4: tf.int32, 8: tf.int64}


@dataclasses.dataclass(frozen=True)
class Difference:
    """The first step after which something differs, and the first such thing.

    Attributes:
      step: counted from 1.
      name: a metric, or the path of a variable.
      index: of the first element that differs.
      ours: its value in our loop.
      theirs: its value in Keras' loop.
      count: how many metrics and variables differ after this step.
    """

    step: int
    name: str
    index: tuple[int, ...]
    ours: float
    theirs: float
    count: int

    def __str__(self) -> str:
        place = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        others = f"; {self.count - 1} others differ too" if self.count > 1 else ""
        return (
            f"step {self.step}: {self.name}{place} is {self.ours!r} here and "
            f"{self.theirs!r} in Keras{others}."
        )


@dataclasses.dataclass(frozen=True)
class Proof:
    """What was compared, and the first difference if there is one.

    Attributes:
      steps: how many were taken.
      skipped_steps: how many of them overflowed.
      variables: how many were compared after each step.
      difference: None where every bit agrees.
    """

    steps: int
    skipped_steps: int
    variables: int
    difference: Difference | None

    def __str__(self) -> str:
        took = f"{self.steps} steps, {self.skipped_steps} of them skipped: "
        if self.difference is not None:
            return f"{took}First difference after {self.difference}"
        return (
            f"{took}loss, learning rate and all {self.variables} variables (weights, "
            "statistics, slots, seeds, loss scale and its counter) equal those of "
            "Keras bit for bit."
        )


def prove(
    ours: train_step.TrainStep,
    theirs: keras_step.KerasStep,
    batches: Iterable[nests.Batch],
    steps: int,
) -> Proof:
    """Takes the same steps with both loops, up to the first difference.

    Args:
      ours: our step.
      theirs: Keras' step, from equal weights and seeds.
      batches: (inputs, labels[, sample_weight]), at least `steps` of them.
      steps: how many to take.

    Returns:
      The proof. Two NaNs are equal whatever their bits say; +0 and -0 are not.
    """
    shared = _pairs(ours, theirs)
    names = list(shared)
    agree = tf.function(
        lambda: tf.stack([tf.reduce_all(_same(*shared[name])) for name in names])
    )
    taken = skipped = 0
    difference = None
    with _as_written():
        for taken, batch in enumerate(batches, start=1):
            mine, other = ours(*batch), theirs(*batch)
            skipped += not bool(mine["grads_finite"])
            both = {name: (mine[name], other[name]) for name in _METRICS}
            differing = [name for name in both if not np.all(_same(*both[name]))]
            variables = zip(names, agree().numpy(), strict=True)
            differing += [name for name, same in variables if not same]
            if differing:
                values = (both | shared)[differing[0]]
                difference = _difference(taken, differing, *values)
            if differing or taken == steps:
                break
    return Proof(taken, skipped, len(names), difference)


@contextlib.contextmanager
def _as_written() -> Iterator[None]:
    """Inside, what is traced adds up 16-bit numbers in the order of its source.

    TensorFlow rewrites sums of a graph by what is around them, and so the two loops
    in two ways, of which each rounds otherwise.
    """
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    try:
        yield
    finally:
        again = {"arithmetic_optimization": True} | before
        tf.config.optimizer.set_experimental_options(again)


def _pairs(
    ours: train_step.TrainStep, theirs: keras_step.KerasStep
) -> dict[str, tuple[tf.Variable, tf.Variable]]:
    """The values that both loops hold, by name, in the order of the model."""
    mixed_of = _mapped(pairs.of_weights(theirs.model, theirs.twin))
    weights = [
        (mine, mixed_of[id(other)])
        for mine, other in pairs.of_weights(ours.model, theirs.model)
    ]
    # Both optimizers keep the order of their model's trainable variables.
    slots = zip(ours.optimizer.variables, theirs.optimizer.variables, strict=True)
    twin_seeds = _mapped(pairs.of_seeds(ours.model, ours.twin))
    mixed_seeds = _mapped(pairs.of_seeds(theirs.model, theirs.twin))
    seeds = [
        (twin_seeds[id(mine)], mixed_seeds[id(other)])
        for mine, other in pairs.of_seeds(ours.model, theirs.model)
    ]
    shared = {
        mine.path: (mine.value, other.value) for mine, other in [*weights, *slots]
    }
    shared |= {
        f"seed {i}": (mine.value, other.value) for i, (mine, other) in enumerate(seeds)
    }
    if theirs.scale_variables:
        shared |= zip(
            ("the loss scale", "the count of clean steps"),
            zip(ours.state.loss_scale[:2], theirs.scale_variables, strict=True),
            strict=True,
        )
    return shared


def _mapped(found: list[pairs.Pair]) -> dict[int, keras.Variable]:
    """The copies by the ids of what they were made of."""
    return {id(original): copy for original, copy in found}


def _same(mine: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """For each element, whether its bits are equal or both are NaN."""
    mine, other = tf.convert_to_tensor(mine), tf.convert_to_tensor(other)
    if not mine.dtype.is_floating:
        return mine == tf.cast(other, mine.dtype)  # counters: int32 here, int64 there
    integer = _SAME_SIZE[mine.dtype.size]
    same_bits = tf.bitcast(mine, integer) == tf.bitcast(other, integer)
    return same_bits | (tf.math.is_nan(mine) & tf.math.is_nan(other))


def _difference(
    step: int, differing: list[str], mine: tf.Variable, other: tf.Variable
) -> Difference:
    index = tuple(int(i) for i in np.argwhere(~np.asarray(_same(mine, other)))[0])
    mine, other = (np.asarray(tensor)[index].item() for tensor in (mine, other))
    return Difference(step, differing[0], index, mine, other, len(differing))
