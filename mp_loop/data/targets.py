"""Targets of a regression: numbers, and how they are standardized for training.

    targets = Targets.of(labels, ("price", "rent"))       # of the training examples
    targets.standardized(labels)                          # what the model learns
    targets.in_units(outputs)                             # what it says of the data

A loss of raw numbers may be 1e10, which drives the loss scale of float16 down, and a
network begins with outputs of about one.
"""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from mp_loop.data import number_rows
from mp_loop.distributed import nests


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
    """What is to be predicted.

    Attributes:
      names: of the targets.
      mean: float64 [targets], over the training examples.
      std: float64, likewise (population); 1 for a constant target.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, names: tuple[str, ...]) -> Targets:
        """Measures the labels of the training examples, float64 [n, targets]."""
        return cls(names, *number_rows.moments(labels))

    def standardized(self, labels: tf.Tensor | np.ndarray) -> tf.Tensor:
        """Returns (label - mean) / std, float32, of labels, float64 [n, targets]."""
        # float64 until here: float32 would not tell two days apart in seconds.
        return keras.ops.cast((labels - self.mean) / self.std, "float32")

    def around_zero(self) -> Targets:
        """Returns the same with a mean of 0: for what does not depend on it."""
        return dataclasses.replace(self, mean=np.zeros_like(self.mean))

    def in_units(self, outputs: nests.AnyTensor | np.ndarray) -> nests.AnyTensor:
        """Returns float64 [n, targets] of what is standardized; also symbolically."""
        return keras.ops.cast(outputs, "float64") * self.std + self.mean


def names_of(label_column: str, count: int) -> tuple[str, ...]:
    """Returns the names of the targets: those of columns, else their numbers.

    Args:
      label_column: as of `--label_column`.
      count: how many targets there are.
    """
    named = columns(label_column)
    return named if len(named) == count else tuple(map(str, range(count)))


def columns(label_column: str) -> tuple[str, ...]:
    """Returns the columns of `--label_column` that are targets."""
    return tuple(column.strip() for column in label_column.split(","))
