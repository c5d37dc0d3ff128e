"""Errors of a regression, in units."""

import math

import numpy as np
import pytest

from mp_loop.data import targets
from mp_loop.run import target_scores

TRAIN = np.array([[1.0, 100], [2, 300], [9, 200]])
OF = targets.Targets.of(TRAIN, ("price", "rent"))
LABELS = np.array([[2.0, 200], [4, 100], [6, 300]])
PREDICTED = np.array([[2.0, 210], [5, 100], [3, 330]])


def scores(predicted=PREDICTED, batch=2):
    made = target_scores.TargetScores(OF, TRAIN)
    standard = [(x - OF.mean) / OF.std for x in (LABELS, predicted)]
    for first in range(0, 3, batch):
        made.add(*(x[first : first + batch] for x in standard))
    return made


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_errors_are_in_units_and_beside_them_constant_predictions(batch):
    made = scores(batch=batch)
    values = made.values()
    price, rent = values["targets"]
    assert (values["task"], values["examples"], values["unusable"]) == (
        "regression", 3, 0,
    )  # fmt: skip
    assert price["name"] == "price"
    assert price["mae"] == pytest.approx(4 / 3)
    assert price["rmse"] == pytest.approx(math.sqrt(10 / 3))
    assert price["r2"] == pytest.approx(1 - 10 / 8)
    assert price["median_mae"] == pytest.approx((0 + 2 + 4) / 3)
    assert price["mean_rmse"] == pytest.approx(math.sqrt((4 + 0 + 4) / 3))
    assert rent["mae"] == pytest.approx(40 / 3)
    np.testing.assert_allclose(rent["points"], [[200, 210], [100, 100], [300, 330]])
    assert made.shown()["worst"] == [2, 1, 0]
    found = made.example(2)
    np.testing.assert_allclose(found["labels"], [6, 300])
    np.testing.assert_allclose(found["predictions"], [3, 330])


def test_what_is_not_finite_is_counted_and_comes_first():
    predicted = PREDICTED.copy()
    predicted[1, 0] = np.nan
    made = scores(predicted)
    values = made.values()
    assert values["unusable"] == 1 and made.shown()["worst"][0] == 1
    assert values["targets"][0]["mae"] == pytest.approx(1.5)
    values = scores(np.full((3, 2), np.inf)).values()
    assert values["unusable"] == 3 and math.isnan(values["targets"][0]["mae"])


def test_points_are_bounded():
    made = target_scores.TargetScores(OF, TRAIN)
    made.add(np.zeros((2999, 2)), np.zeros((2999, 2)))
    assert len(made.values()["targets"][0]["points"]) == 1000
    many = np.random.default_rng(0).normal(size=(500, 100))
    of = targets.Targets.of(many, tuple(map(str, range(100))))
    made = target_scores.TargetScores(of, many)
    made.add(many, many)
    assert len(made.values()["targets"][99]["points"]) == 167  # every third
