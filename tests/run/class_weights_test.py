"""Class weights from a flag."""

import numpy as np
import pytest

from mp_loop.config import errors
from mp_loop.data import decoding, sources
from mp_loop.run import class_weights

LABELS = np.array([0] * 6 + [1] * 3 + [3] * 3)
SPLIT = decoding.Split(np.zeros((12, 2, 2, 1), np.uint8), LABELS)
NAMES = ("cat", "dog", "a:b", "7")
SOURCE = sources.Source(
    "pets", SPLIT, SPLIT, 4, (2, 2, 1), NAMES, np.zeros(1), np.ones(1)
)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("", ()),
        ("cat:2, a:b:0.5", (2.0, 1.0, 0.5, 1.0)),
        ("1:0,7:3", (1.0, 0.0, 1.0, 3.0)),
        ("balanced", (12 / 18, 12 / 9, 1.0, 12 / 9)),
    ],
)
def test_weights(text, weights):
    assert class_weights.parse(text, SOURCE) == pytest.approx(weights)


def test_balanced_weights_have_a_mean_of_1_over_the_examples():
    weights = np.array(class_weights.parse("balanced", SOURCE))
    assert weights[SOURCE.train.labels].mean() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dgo:2", r"dgo:2\) must be NAME:WEIGHT, of a class of 'pets': dog\."),
        ("cat", r"\(cat\) must be NAME:WEIGHT.*: cat, dog, a:b, 7\."),
        ("4:1", r"\(4:1\) must be NAME:WEIGHT"),
        ("cat:-1", r"\(cat:-1\): the weight must be a number from 0 on"),
        ("cat:nan", "the weight must be a number"),
        ("cat:", "the weight must be a number"),
    ],
)
def test_what_is_no_weight_is_refused(text, said):
    with pytest.raises(errors.UsageError, match=said):
        class_weights.parse(text, SOURCE)
