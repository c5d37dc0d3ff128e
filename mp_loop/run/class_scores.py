"""What a classifier gets right and wrong, class by class.

    scores = ClassScores(("cat", "dog"), from_logits=True)
    for labels, outputs in batches:
        scores.add(labels, outputs)
    scores.values()                 # counts of each class, and what is taken for what
    scores.shown()                  # {"worst": places of examples, "best": ...}
    scores.example(place)           # its class, the predicted one, and probabilities

An example whose output is NaN or infinite has no predicted class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mp_loop.config import json_values

# Single examples that are shown, of any task.
MOST_WORST, MOST_BEST = 12, 6
# Of up to 32 classes every pair is kept.
MOST_PAIRS = 1000
_NONE = -1  # the predicted class where an output is NaN


class ClassScores:
    """Counts predictions of classes, and remembers those of each example."""

    def __init__(self, class_names: Sequence[str], from_logits: bool):
        """Begins with no example.

        Args:
          class_names: in the order of the outputs.
          from_logits: whether outputs are logits; else they are probabilities.
        """
        self._names = list(class_names)
        self._from_logits = from_logits
        # Of each batch: label, predicted class, their log-probabilities, rank.
        self._batches: list[tuple[np.ndarray, ...]] = []

    def add(self, labels: np.ndarray, outputs: np.ndarray) -> None:
        """Counts a batch.

        Args:
          labels: class numbers, [n].
          outputs: [n, classes], of any floating dtype.
        """
        logs = _log_probabilities(outputs.astype(np.float64), self._from_logits)
        unusable = np.isnan(logs).any(axis=-1)
        predicted = np.where(unusable, _NONE, logs.argmax(axis=-1))
        of_label = np.take_along_axis(logs, labels[:, np.newaxis], axis=-1)
        rank = (logs > of_label).sum(axis=-1) + unusable * logs.shape[-1]
        best = np.where(unusable, np.nan, logs.max(axis=-1))
        self._batches.append((labels, predicted, of_label[:, 0], best, rank))

    def values(self) -> dict[str, json_values.Json]:
        """Returns what test_results.json holds of all examples together.

        `classes` has for each its name, how many examples have it (`count`), for how
        many it was predicted (`predicted`), and for how many it was right. `confused`
        has `label`, `predicted` and `count` of pairs of classes, the most frequent
        first.
        """
        labels, predicted, _, _, rank = self._columns()
        size = len(self._names)
        right = labels[predicted == labels]
        counts = (labels, predicted[predicted != _NONE], right)
        columns = [np.bincount(x, minlength=size).tolist() for x in counts]
        wrong = (predicted != labels) & (predicted != _NONE)
        pairs = labels[wrong] * size + predicted[wrong]
        pairs, counted = np.unique(pairs, return_counts=True)
        values = {
            "task": "classification",
            "examples": len(labels),
            "unusable": int((predicted == _NONE).sum()),
            "top_1": len(right) / len(labels),
            "classes": [
                dict(zip(("name", "count", "predicted", "right"), one, strict=True))
                for one in zip(self._names, *columns, strict=True)
            ],
            "confused": confused(pairs // size, pairs % size, counted),
        }
        if size > 5:
            values["top_5"] = float((rank < 5).mean())
        return values

    def shown(self) -> dict[str, list[int]]:
        """Returns the places of the worst examples, and of the best, in their order.

        The worst have the highest loss, those without a usable output first; the best
        are right, and the most certain.
        """
        labels, predicted, of_label, best, _ = self._columns()
        loss = np.where(predicted == _NONE, np.inf, -of_label)
        worst = np.argsort(-loss, kind="stable")
        certain = np.argsort(-best, kind="stable")
        right = certain[(predicted == labels)[certain]]
        return {
            "worst": worst[:MOST_WORST].tolist(),
            "best": right[:MOST_BEST].tolist(),
        }

    def example(self, place: int) -> dict[str, json_values.Json]:
        """Returns what is said of an example: classes by their numbers."""
        label, predicted, of_label, best, _ = (x[place] for x in self._columns())
        return {
            "label": int(label),
            "predicted": None if predicted == _NONE else int(predicted),
            "probability": float(np.exp(best)),
            "label_probability": float(np.exp(of_label)),
        }

    def _columns(self) -> list[np.ndarray]:
        if len(self._batches) > 1:
            columns = zip(*self._batches, strict=True)
            self._batches = [tuple(map(np.concatenate, columns))]
        return list(self._batches[0])


def _log_probabilities(outputs: np.ndarray, from_logits: bool) -> np.ndarray:
    """Returns float64 [n, classes]; NaN where an output cannot be used."""
    with np.errstate(all="ignore"):
        if not from_logits:
            return np.log(outputs)
        shifted = outputs - outputs.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def confused(
    label: np.ndarray, predicted: np.ndarray, count: np.ndarray
) -> list[dict[str, int]]:
    """Lists pairs of classes that are taken for one another, at most `MOST_PAIRS`.

    Args:
      label: the true class of each pair.
      predicted: another one.
      count: how often it was predicted.

    Returns:
      `label`, `predicted` and `count`, the most frequent first.
    """
    first = np.argsort(-count, kind="stable")[:MOST_PAIRS]
    names = ("label", "predicted", "count")
    columns = (column[first].tolist() for column in (label, predicted, count))
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
