"""Weights of classes, as `--class_weights` names them.

class_weights.parse("balanced", source)        # (0.5, 2.0)
class_weights.parse("cat:2,5:0.5", source)     # by name or number; others: 1
"""

from __future__ import annotations

import math

import numpy as np

from mp_loop.config import errors, names
from mp_loop.data import sources

BALANCED = "balanced"


def parse(text: str, source: sources.Source) -> tuple[float, ...]:
    """Returns a weight for each class; nothing of an empty text.

    Balanced weights are `examples / (classes * examples of the class)`: all classes
    together weigh alike, and the mean over the training examples is 1.

    Raises:
      UsageError: a class that there is not, or a number that is no weight.
    """
    if not text:
        return ()
    if text == BALANCED:
        counts = source.class_counts()
        present = np.count_nonzero(counts)
        weights = counts.sum() / (present * np.maximum(counts, 1))
        return tuple(np.where(counts, weights, 1.0).tolist())
    found = dict.fromkeys(source.class_names, 1.0)
    for part in text.split(","):
        name, _, number = part.strip().rpartition(":")
        if name.isdecimal() and int(name) < len(found) and name not in found:
            name = source.class_names[int(name)]
        if name not in found:
            raise errors.UsageError(
                f"--class_weights ({part.strip()}) must be NAME:WEIGHT, of a class of "
                f"'{source.name}'{_near(name, source)}."
            )
        found[name] = _weight(part.strip(), number)
    return tuple(found[name] for name in source.class_names)


def _weight(part: str, number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise errors.UsageError(
            f"--class_weights ({part}): the weight must be a number from 0 on."
        )
    return weight


def _near(name: str, source: sources.Source) -> str:
    """Names classes that may be meant."""
    close = names.similar(name, source.class_names, cutoff=0.6)
    some = close or source.class_names[:8]
    more = "" if close or len(source.class_names) == len(some) else ", ..."
    return f": {', '.join(some)}{more}"
