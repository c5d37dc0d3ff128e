"""What a model of several labels gets right and wrong, label by label.

    scores = LabelScores(("cat", "dog"), from_logits=True)
    for labels, outputs in batches:                  # [n, labels] each
        scores.add(labels, outputs)
    scores.values()                 # counts of each label, and its AUROC
    scores.shown()                  # {"worst": places of examples}
    scores.example(place)           # its labels, and the predicted ones

A label is predicted where its probability is 0.5 or more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mp_loop.config import json_values
from mp_loop.run import class_scores
from mp_loop.step import auc

_MOST_LABELS = 20  # of one example


class LabelScores:
    """Counts predictions of labels, and remembers the worst examples."""

    def __init__(self, class_names: Sequence[str], from_logits: bool):
        """Begins with no example.

        Args:
          class_names: in the order of the outputs.
          from_logits: whether outputs are logits; else they are probabilities.
        """
        self._names = list(class_names)
        self._from_logits = from_logits
        self._auc = auc.MeanAuc(len(self._names))
        self._counts = np.zeros((3, len(self._names)), np.int64)
        self._examples = self._exact = self._unusable = 0
        # Loss, place, labels and predicted labels of the worst, these first.
        self._worst: list[tuple[float, int, np.ndarray, np.ndarray]] = []

    def add(self, labels: np.ndarray, outputs: np.ndarray) -> None:
        """Counts a batch: labels, 0 or 1, and outputs of any floating dtype."""
        given, outputs = labels > 0.5, outputs.astype(np.float64)
        yes, no = _probabilities(outputs, self._from_logits)
        unusable = np.isnan(yes).any(axis=-1)
        predicted = (yes >= 0.5) & ~unusable[:, np.newaxis]
        counts = (given, predicted, given & predicted)
        self._counts += np.stack([one.sum(axis=0) for one in counts])
        self._exact += int(((given == predicted).all(axis=-1) & ~unusable).sum())
        self._unusable += int(unusable.sum())
        usable = ~unusable
        if usable.any():
            self._auc.update_state(given[usable], yes[usable].astype(np.float32))
        with np.errstate(divide="ignore"):
            loss = -np.log(np.where(given, yes, no)).mean(axis=-1)
        loss[unusable] = np.inf
        rows = enumerate(zip(loss, given, predicted, strict=True), self._examples)
        self._worst += [(row[0], place, *row[1:]) for place, row in rows]
        self._worst.sort(key=lambda one: -one[0])
        del self._worst[class_scores.MOST_WORST :]
        self._examples += len(labels)

    def values(self) -> dict[str, json_values.Json]:
        """Returns what test_results.json holds of all examples together.

        `exact` is the share of the examples whose every label is right. `labels` has
        for each its name, how many examples have it (`count`), for how many it was
        `predicted`, for how many of these it was `right`, and `auroc`, NaN where all
        examples have it or none.
        """
        areas, known = (np.asarray(one) for one in self._auc.of_each_class())
        areas = np.where(known, areas, np.nan)
        names = ("name", "count", "predicted", "right", "auroc")
        columns = (self._names, *self._counts.tolist(), areas.tolist())
        rows = zip(*columns, strict=True)
        return {
            "task": "multilabel",
            "examples": self._examples,
            "unusable": self._unusable,
            "exact": self._exact / self._examples,
            "labels": [dict(zip(names, row, strict=True)) for row in rows],
        }

    def shown(self) -> dict[str, list[int]]:
        """Returns the places of the examples of the highest loss, in their order."""
        return {"worst": [place for _, place, *_ in self._worst]}

    def example(self, place: int) -> dict[str, json_values.Json]:
        """Returns the labels of an example, by their numbers, some if there are many.

        Args:
          place: of an example that `shown` returns.
        """
        _, _, given, predicted = next(x for x in self._worst if x[1] == place)
        return {
            name: np.flatnonzero(flags)[:_MOST_LABELS].tolist()
            for name, flags in (("labels", given), ("predictions", predicted))
        }


def _probabilities(
    outputs: np.ndarray, from_logits: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probabilities that a label is there, and that it is not."""
    if not from_logits:
        return outputs, 1 - outputs
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-outputs)), 1 / (1 + np.exp(outputs))
