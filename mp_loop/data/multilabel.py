"""Examples of which several classes may be right at once, or none.

    made = assemble(data, (train, test), bad, hint, ("cat", "dog"))
    made.train.labels            # uint8 [n, classes], of 0 and 1

Each class is a question of its own: its label says yes (1) or no (0).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mp_loop.config import errors, json_values, sections
from mp_loop.data import bad_examples, classes, decoding

_WORDS = {"true": 1.0, "false": 0.0}


def flag(value: json_values.Json) -> float:
    """Returns 1 or 0 of what stands in a table; NaN if it is neither."""
    word = str(value).strip().lower()
    try:
        found = _WORDS[word] if word in _WORDS else float(word)
    except ValueError:
        return float("nan")
    return found if found in (0.0, 1.0) else float("nan")


def only_flags(values: np.ndarray) -> np.ndarray:
    """Returns numbers with NaN in the place of all that is neither 0 nor 1."""
    return np.where((values == 0) | (values == 1), values, np.nan)


def names(value: json_values.Json) -> tuple[str, ...] | None:
    """Returns the names of classes in a list of JSON; None if it is no such list."""
    if not isinstance(value, list):
        return None
    known = all(isinstance(name, str | int) and name != "" for name in value)
    return tuple(map(str, value)) if known else None


def flags_of(named: Iterable[str], class_names: Sequence[str]) -> tuple[int, ...]:
    """Says of each class whether it is among the names: 1 or 0."""
    found = {*named}
    return tuple(int(name in found) for name in class_names)


def assemble(
    data: sections.Data,
    parts: tuple[classes.Part, classes.Part],
    bad: list[str],
    hint: str,
    class_names: Sequence[str] | None = None,
    kind: str = "image",
) -> decoding.Labelled:
    """Keeps the classes that there is an example of to train on.

    Args:
      data: `dataset`, `validation_fraction` and `skip_bad_examples` are read.
      parts: to train and to evaluate on; labels are 0 and 1, [n, classes], or tuples of
        names, [n].
      bad: what was left out until here; is told, see `bad_examples.settle`.
      hint: how a user gives examples to evaluate on.
      class_names: one for each column of labels; None: labels are tuples of names.
      kind: what the inputs are, see `decoding.Labelled`.

    Raises:
      DataError: what is bad is not to be left out, there is no class, or there is
        nothing to train or to evaluate on.
    """
    if class_names is None:
        class_names = _sorted({x for part in parts for row in part.labels for x in row})
        parts = tuple(_with_flags(part, class_names) for part in parts)
    if "" in class_names or len({*class_names}) < len(class_names):
        raise errors.DataError(
            f"Data set '{data.dataset}': the names of classes must differ, and not be "
            f"empty: {', '.join(class_names)}."
        )
    train, test = (part.labels.astype(np.uint8) for part in parts)
    known = train.any(axis=0)
    bad += [
        f"class {name}: no example to train on"
        + (f", but {count} to evaluate on" if count else "")
        for name, right, count in zip(
            class_names, known, test.sum(axis=0, dtype=np.int64), strict=True
        )
        if not right
    ]
    bad_examples.settle(data.dataset, bad, data.skip_bad_examples)
    if not known.any():
        raise errors.DataError(
            f"Data set '{data.dataset}' has no example of any class to train on."
        )
    classes.check_evaluation(data, len(train), len(test), hint)
    return decoding.Labelled(
        decoding.Split(parts[0].inputs, train[:, known], parts[0].names),
        decoding.Split(parts[1].inputs, test[:, known], parts[1].names),
        tuple(name for name, right in zip(class_names, known, strict=True) if right),
        kind,
    )


def _with_flags(part: classes.Part, class_names: Sequence[str]) -> classes.Part:
    """Makes 0 and 1 of names."""
    place = {name: column for column, name in enumerate(class_names)}
    flags = np.zeros((len(part.labels), len(place)), np.uint8)
    for row, named in zip(flags, part.labels, strict=True):
        row[[place[name] for name in named]] = 1
    return classes.Part(part.inputs, flags, part.names)


def _sorted(found: set[str]) -> list[str]:
    """Sorts names; integers as such, so that 10 follows 9."""
    if all(name.isdecimal() for name in found):
        return sorted(found, key=int)
    return sorted(found)
