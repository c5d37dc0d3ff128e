"""How far the predictions of a regression are from its targets.

    scores = TargetScores(source.targets, source.train.labels)
    for labels, outputs in batches:              # both standardized
        scores.add(labels, outputs)
    scores.values()             # errors in units, and those of constant predictions
    scores.shown()              # {"worst": places of examples}
    scores.example(place)       # its targets, and what was predicted

An example of which an output is NaN or infinite is in no error.
"""

from __future__ import annotations

import numpy as np

from mp_loop.config import json_values
from mp_loop.data import targets
from mp_loop.run import class_scores

_MOST_POINTS, _MOST_IN_ALL = 1000, 20_000  # of a target, and of all


class TargetScores:
    """Remembers targets and predictions of each example."""

    def __init__(self, of: targets.Targets, known: np.ndarray):
        """Begins with no example.

        Args:
          of: what is predicted.
          known: the labels of the training examples, float64 [n, targets].
        """
        self._targets = of
        self._mean, self._median = known.mean(axis=0), np.median(known, axis=0)
        self._batches: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, labels: np.ndarray, outputs: np.ndarray) -> None:
        """Counts a batch, standardized, [n, targets] each."""
        of = self._targets
        in_units = (x.astype(np.float64) * of.std + of.mean for x in (labels, outputs))
        self._batches.append(tuple(in_units))

    def values(self) -> dict[str, json_values.Json]:
        """Returns what test_results.json holds of all examples together.

        Errors are in the units of each target: `mae`, `rmse` and `r2`, the same of the
        training targets' median (`median_mae`) and mean (`mean_rmse`) as predictions,
        and `points`, pairs of a target and its prediction.
        """
        labels, predicted = self._columns()
        usable = np.isfinite(predicted).all(axis=-1)
        most = min(_MOST_POINTS, max(1, _MOST_IN_ALL // labels.shape[1]))
        every = -(-len(labels) // most)
        return {
            "task": "regression",
            "examples": len(labels),
            "unusable": int((~usable).sum()),
            "targets": [
                {
                    "name": name,
                    **_errors(labels[usable, i], predicted[usable, i]),
                    "median_mae": _mae(labels[:, i] - self._median[i]),
                    "mean_rmse": _rmse(labels[:, i] - self._mean[i]),
                    "points": np.stack([labels[::every, i], predicted[::every, i]], 1),
                }
                for i, name in enumerate(self._targets.names)
            ],
        }

    def shown(self) -> dict[str, list[int]]:
        """Returns the places of the examples with the largest errors, in their order.

        Errors of several targets are compared in their deviations. Examples without a
        usable output come first.
        """
        labels, predicted = self._columns()
        error = (np.abs(predicted - labels) / self._targets.std).mean(axis=-1)
        error[~np.isfinite(error)] = np.inf
        worst = np.argsort(-error, kind="stable")
        return {"worst": worst[: class_scores.MOST_WORST].tolist()}

    def example(self, place: int) -> dict[str, json_values.Json]:
        """Returns what is said of an example, in units."""
        labels, predicted = (x[place].tolist() for x in self._columns())
        return {"labels": labels, "predictions": predicted}

    def _columns(self) -> tuple[np.ndarray, np.ndarray]:
        if len(self._batches) > 1:
            labels, outputs = zip(*self._batches, strict=True)
            self._batches = [(np.concatenate(labels), np.concatenate(outputs))]
        return self._batches[0]


def _errors(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Returns the errors of one target; NaN where there is nothing to measure."""
    if not len(labels):
        return dict.fromkeys(("mae", "rmse", "r2"), float("nan"))
    error = predicted - labels
    spread = float(np.square(labels - labels.mean()).sum())
    r2 = 1 - float(np.square(error).sum()) / spread if spread else float("nan")
    return {"mae": _mae(error), "rmse": _rmse(error), "r2": r2}


def _mae(error: np.ndarray) -> float:
    return float(np.abs(error).mean())


def _rmse(error: np.ndarray) -> float:
    return float(np.sqrt(np.square(error).mean()))
