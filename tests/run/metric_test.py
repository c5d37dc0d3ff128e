"""Metrics: what they are called, and which way is better."""

import dataclasses

import keras
import numpy as np
import pytest

from mp_loop.data import targets
from mp_loop.run import metric
from tests.support import data_sets

CLASSES = data_sets.source(6)
SEVERAL = dataclasses.replace(CLASSES, task="multilabel")


def of_targets(of):
    return dataclasses.replace(CLASSES, targets=of, task="regression")


METRICS = {
    "accuracy": ("eval_accuracy", True),
    "sparse_top_k_categorical_accuracy": ("eval_top_5_accuracy", True),
    "ce": ("eval_sparse_categorical_crossentropy", False),
    "mse": ("eval_mean_squared_error", False),
    "AUC": ("eval_auc", True),
    "mean": ("eval_mean", None),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_knows_its_name_and_its_direction(name):
    found = metric.make(name, from_logits=True, source=CLASSES)
    assert (found.key, found.higher_is_better) == METRICS[name]


def test_accuracy_is_that_of_class_numbers():
    found = metric.make("accuracy", from_logits=True, source=CLASSES).metric
    found.update_state(np.array([1, 0]), np.array([[0.0, 2.0], [0.0, 2.0]]))
    assert float(found.result()) == 0.5


def test_a_metric_that_asks_is_told_of_logits():
    logits = np.array([[0.0, 2.0]], np.float32)
    found = metric.make("crossentropy", from_logits=True, source=CLASSES).metric
    found.update_state(np.array([1]), logits)
    wanted = keras.losses.sparse_categorical_crossentropy(
        np.array([1]), logits, from_logits=True
    )
    assert float(found.result()) == pytest.approx(float(wanted[0]))


def test_a_metric_with_arguments_is_refused():
    with pytest.raises(ValueError, match="needs arguments"):
        metric.make("mean_io_u", from_logits=True, source=CLASSES)


def test_perplexity_is_made_of_the_mean_loss():
    found = metric.make("perplexity", from_logits=True, source=CLASSES)
    assert (found.metric, found.key) == (None, "eval_perplexity")
    assert found.higher_is_better is False
    named = found.named({"eval_loss": 2.0})
    assert named == {"eval_loss": 2.0, "eval_perplexity": pytest.approx(np.exp(2.0))}
    assert found.named({"eval_loss": 1e4})["eval_perplexity"] == np.inf


@pytest.mark.parametrize(
    ("name", "key", "better"),
    [
        ("mean_absolute_error", "eval_mean_absolute_error", False),
        ("r2_score", "eval_r2_score", True),
    ],
    ids=["an error", "a score"],
)
def test_targets_are_measured_in_their_units(name, key, better):
    generator = np.random.default_rng(0)
    # Times: float32 holds them to 128 seconds.
    labels = 1.7e9 + generator.normal(size=(20, 1)) * 50
    found_by_model = labels + generator.normal(size=(20, 1))
    of = targets.Targets.of(labels, ("time",))
    found = metric.make(name, from_logits=True, source=of_targets(of))
    assert (found.key, found.higher_is_better) == (key, better)
    error = found_by_model - labels
    wanted = {
        "mean_absolute_error": np.abs(error).mean(),
        "r2_score": 1 - np.sum(error**2) / np.sum((labels - labels.mean()) ** 2),
    }[name]
    for _ in range(2):
        found.metric.reset_state()
        for part in (slice(0, 7), slice(7, 20)):
            both = map(of.standardized, (labels[part], found_by_model[part]))
            found.metric.update_state(*both)
        assert float(found.metric.result()) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "name", ["mean_absolute_percentage_error", "cosine_similarity"]
)
def test_a_metric_that_depends_on_the_mean_gets_it(name, count):
    labels = 50 + np.arange(4.0 * count).reshape(4, count)
    of = targets.Targets.of(labels, tuple("ab"[:count]))
    found = metric.make(name, from_logits=True, source=of_targets(of)).metric
    found.update_state(*map(of.standardized, (labels, 1.1 * labels)))
    wanted = {"mean_absolute_percentage_error": 10, "cosine_similarity": 1}[name]
    assert float(found.result()) == pytest.approx(wanted, rel=1e-5)


SCORES = np.array([[2, -1, 0, -9, -9, -9], [-2, 3, 1, -9, -9, -9]], np.float32)
FLAGS = np.array([[1, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]], np.float32)
ODDS = 1 / (1 + np.exp(-SCORES))
OF_SEVERAL = {
    "accuracy": ("eval_accuracy", 1 - 2 / 12),
    "auc": ("eval_auc", (1 + 1 + 0) / 3),  # the others have no curve
    "precision": ("eval_precision", 2 / 3),
    "mse": ("eval_mean_squared_error", np.mean((ODDS - FLAGS) ** 2)),
}


@pytest.mark.parametrize("name", OF_SEVERAL)
@pytest.mark.parametrize("from_logits", [True, False])
def test_metrics_of_several_labels_get_probabilities(name, from_logits):
    key, wanted = OF_SEVERAL[name]
    made = metric.make(name, from_logits, SEVERAL)
    assert made.key == key
    made.metric.update_state(FLAGS, SCORES if from_logits else ODDS)
    assert float(made.metric.result()) == pytest.approx(wanted, abs=1e-5)


def test_f1_of_several_labels_is_the_mean_of_the_classes():
    made = metric.make("f1_score", True, SEVERAL)
    made.metric.update_state(FLAGS, SCORES)
    assert float(made.metric.result()) == pytest.approx(2 / 6)  # the third is wrong


def test_auc_of_class_numbers_is_that_of_each_class_against_the_others():
    made = metric.make("auc", True, CLASSES)
    logits = np.array([[3, 1, 0, 0, 0, 0], [2, 0.5, 0, 0, 0, 0]], np.float32)
    made.metric.update_state(np.array([0, 1]), logits)
    assert (made.key, made.higher_is_better) == ("eval_auc", True)
    # Of softmax: the logit of the second class is larger where it is not right.
    assert float(made.metric.result()) == pytest.approx(1)


def test_of_shares_the_largest_counts():
    found = metric.OfShares(
        metric.make("accuracy", from_logits=True, source=CLASSES).metric
    )
    shares = np.array([[0.6, 0.4], [0.3, 0.7]], np.float32)
    found.update_state(shares, np.array([[0.0, 2.0], [0.0, 2.0]]))
    assert (float(found.result()), found.name) == (0.5, "accuracy")
    found.reset_state()
    assert float(found.result()) == 0


def test_mean_iou_is_of_the_pixels_that_count():
    pixels = dataclasses.replace(data_sets.source(3), task="segmentation")
    made = metric.make("mean_iou", True, pixels)
    assert (made.key, made.higher_is_better) == ("eval_mean_iou", True)
    labels = np.array([[[0, 0], [1, 2]], [[1, 1], [0, 2]]])
    guesses = np.array([[[0, 1], [1, 0]], [[1, 0], [0, 0]]])
    weights = np.where(labels == 2, 0, 1.5).astype(np.float32)
    for i in range(2):
        logits = np.eye(3, dtype=np.float32)[guesses[i : i + 1]] - 0.5
        made.metric.update_state(labels[i : i + 1], logits, weights[i : i + 1])
    # Of each class two of four pixels that are it or are taken for it.
    assert float(made.metric.result()) == pytest.approx(2 / 4)
