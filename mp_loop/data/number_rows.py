"""Rows of numbers: which can be used, and how they are standardized."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mp_loop.config import limits


def usable(
    values: np.ndarray, told: Callable[[int, int], str], bad: list[str]
) -> np.ndarray:
    """Tells which rows hold finite numbers of float32's range only.

    Args:
      values: float64 [n, columns].
      told: says where a value is, and what it is, of its row and column.
      bad: gets the first bad value of each row.

    Returns:
      bool [n].
    """
    fits = np.abs(values) <= limits.LARGEST  # False for NaN
    kept = fits.all(axis=1)
    for row in np.flatnonzero(~kept):
        bad.append(told(row, int(np.argmin(fits[row]))))
    return kept


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of each column, float64 [columns].

    The deviation is the population's, and 1 for a constant column, whose mean is then
    its value.

    Args:
      values: float64 [n, columns], one row at least.
    """
    first = values[0]
    constant = np.all(values == first, axis=0)
    mean = np.where(constant, first, values.mean(axis=0))
    return mean, np.where(constant, 1.0, values.std(axis=0))
