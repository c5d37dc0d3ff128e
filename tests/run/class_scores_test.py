"""Counts of classes, against numbers that one can count."""

import math

import numpy as np
import pytest

from mp_loop.run import class_scores

NAMES = ("cat", "dog", "emu")
LABELS = np.array([0, 0, 1, 1, 2])
# Right, dog for cat, right, emu for dog (narrowly), right and almost certain.
LOGITS = np.array(
    [[2.0, 0, 0], [0, 5, 0], [0, 1, 0], [0, 0.5, 0.6], [0, 0, 20]], np.float32
)


def scores(labels=LABELS, outputs=LOGITS, batch=2, names=NAMES, from_logits=True):
    made = class_scores.ClassScores(names, from_logits)
    for first in range(0, len(labels), batch):
        made.add(labels[first : first + batch], outputs[first : first + batch])
    return made


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("batch", [1, 2, 9])
def test_counts_do_not_depend_on_batches(batch, dtype):
    made = scores(outputs=LOGITS.astype(dtype), batch=batch)
    assert made.values() == {
        "task": "classification",
        "examples": 5,
        "unusable": 0,
        "top_1": 0.6,
        "classes": [
            {"name": "cat", "count": 2, "predicted": 1, "right": 1},
            {"name": "dog", "count": 2, "predicted": 2, "right": 1},
            {"name": "emu", "count": 1, "predicted": 2, "right": 1},
        ],
        "confused": [
            {"label": 0, "predicted": 1, "count": 1},
            {"label": 1, "predicted": 2, "count": 1},
        ],
    }
    assert made.shown() == {"worst": [1, 3, 2, 0, 4], "best": [4, 0, 2]}


def test_probabilities_are_those_of_a_softmax():
    found = scores().example(3)
    sizes = np.exp([0, 0.5, 0.6])
    assert (found["label"], found["predicted"]) == (1, 2)
    assert found["probability"] == pytest.approx(sizes[2] / sizes.sum())
    assert found["label_probability"] == pytest.approx(sizes[1] / sizes.sum())
    given = scores(outputs=np.full((5, 3), 0.25), from_logits=False).example(0)
    assert given["probability"] == given["label_probability"] == 0.25


def test_an_output_that_is_not_finite_is_no_prediction():
    outputs = LOGITS.copy()
    outputs[4] = [np.nan, 0, 0]
    outputs[2] = [0, np.inf, 0]
    outputs[1] = [-np.inf, 5, 0]  # a masked class is usable
    made = scores(outputs=outputs)
    values = made.values()
    assert (values["unusable"], values["top_1"]) == (2, 0.2)
    assert [one["predicted"] for one in values["classes"]] == [1, 1, 1]
    assert made.shown()["worst"][:3] == [1, 2, 4] and made.shown()["best"] == [0]
    found = made.example(4)
    assert found["predicted"] is None and math.isnan(found["probability"])
    assert made.example(1)["label_probability"] == 0


def test_of_more_than_five_classes_the_five_best_count():
    outputs = np.tile(np.arange(8.0), (8, 1))  # class 7 first, then 6, ...
    outputs[0] = np.nan
    values = scores(np.arange(8), outputs, names=tuple("abcdefgh")).values()
    assert (values["top_1"], values["top_5"]) == (1 / 8, 5 / 8)
    assert "top_5" not in scores().values()


def test_a_thousand_classes_keep_the_most_frequent_pairs():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 999, 5000)  # of class 999 there is none
    outputs = generator.normal(size=(5000, 1000))
    outputs[:50, 7] = 100.0
    labels[:50] = 3
    values = scores(labels, outputs, 512, tuple(map(str, range(1000)))).values()
    first, *others = values["confused"]
    assert (first["label"], first["predicted"]) == (3, 7) and first["count"] >= 50
    assert len(others) == 999
    assert values["classes"][999]["count"] == 0
    assert sum(one["count"] for one in values["classes"]) == 5000
