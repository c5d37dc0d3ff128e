"""Counts of labels, against numbers that one can count."""

import math

import numpy as np
import pytest

from mp_loop.run import label_scores

LABELS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], np.float32)
LOGITS = np.array([[2, -1, -3], [1, -2, -3], [3, 0.1, -3], [-1, -3, 0.0]], np.float32)


def scores(outputs=LOGITS, batch=3, from_logits=True):
    made = label_scores.LabelScores(("cat", "dog", "emu"), from_logits)
    for first in range(0, 4, batch):
        made.add(LABELS[first : first + batch], outputs[first : first + batch])
    return made


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_counts_do_not_depend_on_batches(batch):
    made = scores(batch=batch)
    values = made.values()
    assert math.isnan(values["labels"][2].pop("auroc"))  # no example is an emu
    # Of a cat's and another's probability, the cat's is higher in two of four pairs.
    assert values["labels"][0].pop("auroc") == pytest.approx(0.5, abs=0.01)
    assert values["labels"][1].pop("auroc") == pytest.approx(0.75, abs=0.01)
    assert values == {
        "task": "multilabel",
        "examples": 4,
        "unusable": 0,
        "exact": 0.25,
        "labels": [
            {"name": "cat", "count": 2, "predicted": 3, "right": 2},
            {"name": "dog", "count": 2, "predicted": 1, "right": 1},
            {"name": "emu", "count": 0, "predicted": 1, "right": 0},
        ],
    }
    assert made.shown() == {"worst": [2, 1, 3, 0]}
    assert made.example(2) == {"labels": [1], "predictions": [0, 1]}


def test_probabilities_and_what_is_not_finite():
    made = scores(1 / (1 + np.exp(-LOGITS.astype(np.float64))), from_logits=False)
    assert made.values()["exact"] == 0.25
    outputs = LOGITS.copy()
    outputs[0] = np.nan
    outputs[3] = [-np.inf, -6e4, 6e4]  # certain, and one label wrong
    made = scores(outputs.astype(np.float16))
    values = made.values()
    assert values["unusable"] == 1 and values["labels"][0]["right"] == 1
    assert made.shown()["worst"][:2] == [0, 3]
    assert made.example(0) == {"labels": [0], "predictions": []}
    assert scores(np.full((4, 3), np.nan)).values()["exact"] == 0
