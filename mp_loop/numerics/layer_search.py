"""The search for the fewest layers that must stay in float32.

    found = fewest_layers(names, lambda chosen: meter.errors(chosen).within(0.05, 0.5))
    f"--float32_layers={regex(found.names)}"

It is delta debugging (Zeller and Hildebrandt 2002, "Simplifying and Isolating
Failure-Inducing Input"): from all layers in float32, parts are returned to 16 bits as
long as the rest is enough, until no layer can be. Then smaller sets are tried, all of
them if they are few.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence

# How many smaller sets of layers are tried, at most.
_TRIES = 64


@dataclasses.dataclass(frozen=True)
class LayerSet:
    """Layers that must stay in float32.

    Attributes:
      names: the names of the layers, in the order in which they were tried.
      fewest: whether every smaller set was tried and was not enough.
    """

    names: tuple[str, ...]
    fewest: bool


def fewest_layers(
    candidates: Sequence[str], is_enough: Callable[[Sequence[str]], bool]
) -> LayerSet | None:
    """Searches for the fewest layers that must stay in float32.

    Args:
      candidates: the layers that could stay in float32, those to try first in front.
      is_enough: tells whether a set of them is enough; adding layers to a set that is
        enough should not change that.

    Returns:
      A set of which no layer can be left out; None if not even all of them are enough.
    """
    if is_enough(()):
        return LayerSet((), True)
    if not is_enough(tuple(candidates)):
        return None
    return _try_smaller_sets(candidates, is_enough, _reduce(candidates, is_enough))


def _reduce(
    candidates: Sequence[str], is_enough: Callable[[Sequence[str]], bool]
) -> tuple[str, ...]:
    """Removes layers until none can be left out (delta debugging)."""
    current, parts = tuple(candidates), 2
    while len(current) > 1:
        chunks = _split(current, parts)
        rests = [tuple(n for n in current if n not in chunk) for chunk in chunks]
        smaller = next(filter(is_enough, chunks), None)
        if smaller:
            current, parts = smaller, 2
            continue
        smaller = next(filter(is_enough, rests), None) if parts > 2 else None
        if smaller:
            current, parts = smaller, max(parts - 1, 2)
        elif parts < len(current):
            parts = min(2 * parts, len(current))
        else:
            break
    return current


def _try_smaller_sets(
    candidates: Sequence[str],
    is_enough: Callable[[Sequence[str]], bool],
    current: tuple[str, ...],
) -> LayerSet:
    """Looks for a set smaller than `current`, as long as there are few to try."""
    tries = 0
    for size in range(1, len(current)):
        for names in itertools.combinations(candidates, size):
            tries += 1
            if tries > _TRIES:
                return LayerSet(current, False)
            if is_enough(names):
                return LayerSet(names, True)
    return LayerSet(current, True)


def regex(names: Sequence[str]) -> str:
    """Returns the value of --float32_layers that matches exactly these layers."""
    return f"^({'|'.join(map(re.escape, names))})$" if names else ""


def _split(names: tuple[str, ...], parts: int) -> list[tuple[str, ...]]:
    bounds = [round(i * len(names) / parts) for i in range(parts + 1)]
    return [names[a:b] for a, b in itertools.pairwise(bounds) if a < b]
