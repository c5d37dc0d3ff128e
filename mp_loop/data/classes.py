"""Classes: which there are, which number each has, and whether one can learn them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from mp_loop.config import errors, sections
from mp_loop.data import bad_examples, decoding


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Examples of one split, before their classes have numbers.

    Attributes:
      inputs: [n, ...], as `decoding.Split` holds them.
      labels: the class of each: int64 or str, [n]; or its targets, float64
        [n, targets].
      names: of each, if it is a file; else none.
    """

    inputs: np.ndarray | decoding.NotHeld
    labels: np.ndarray
    names: tuple[str, ...] = ()

    def where(self, kept: np.ndarray) -> Part:
        """Returns the examples of a mask, bool [n]."""
        names = tuple(itertools.compress(self.names, kept))
        return Part(self.inputs[kept], self.labels[kept], names)


def assemble(
    data: sections.Data,
    parts: tuple[Part, Part],
    bad: list[str],
    hint: str,
    class_names: Sequence[str] | None = None,
    kind: str = "image",
) -> decoding.Labelled:
    """Numbers the classes that there are to train on, in order.

    Args:
      data: `dataset`, `validation_fraction` and `skip_bad_examples` are read.
      parts: to train and to evaluate on.
      bad: what was left out until here; is told, see `bad_examples.settle`.
      hint: how a user gives examples to evaluate on.
      class_names: of the labels 0, 1, ...; None: labels are their own names.
      kind: what the inputs are, see `decoding.Labelled`.

    Raises:
      DataError: what is bad is not to be left out, there are fewer than two classes,
        or there is nothing to evaluate on.
    """
    train, test = parts
    kept = with_training(train.labels, test.labels, bad)
    known = np.unique(train.labels)
    if class_names is not None:
        missing = set(range(len(class_names))) - set(known.tolist())
        bad += [f"class {class_names[i]}: no example to train on" for i in missing]
    bad_examples.settle(data.dataset, bad, data.skip_bad_examples)
    check(data, train.labels, test.labels[kept], hint)
    if not kept.all():
        test = test.where(kept)
    shown = known if class_names is None else np.array(class_names)[known]
    return decoding.Labelled(
        decoding.Split(train.inputs, _numbers(train.labels, known), train.names),
        decoding.Split(test.inputs, _numbers(test.labels, known), test.names),
        tuple(map(str, shown)),
        kind,
    )


def with_training(train: np.ndarray, test: np.ndarray, bad: list[str]) -> np.ndarray:
    """Tells which test examples are of classes that there is something to train on.

    Args:
      train: the classes of the training examples.
      test: those of the others.
      bad: gets each class of which that is not so.

    Returns:
      bool [n].
    """
    kept = np.isin(test, train)
    for label, count in zip(*np.unique(test[~kept], return_counts=True), strict=True):
        bad.append(f"class {label}: no example to train on, but {count} to evaluate on")
    return kept


def check(data: sections.Data, train: np.ndarray, test: np.ndarray, hint: str) -> None:
    """Refuses what nothing can be learned from, or be evaluated on."""
    known = np.unique(train)
    if len(known) < 2:
        found = f"the class '{known[0]}' alone" if len(known) else "no example"
        raise errors.DataError(
            f"Data set '{data.dataset}' has {found} to train on; two classes or more "
            "are needed."
        )
    check_evaluation(data, len(train), len(test), hint)


def check_evaluation(data: sections.Data, train: int, test: int, hint: str) -> None:
    """Refuses data of which there is no example to evaluate on."""
    if not test:
        raise errors.DataError(
            f"Data set '{data.dataset}' has no example to evaluate on, of {train}; "
            f"--validation_fraction ({data.validation_fraction:g}) can be larger, or "
            f"{hint}."
        )


def _numbers(labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.searchsorted(known, labels).astype(np.int64)
