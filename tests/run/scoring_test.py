"""The test data are predicted once, by what model.keras holds."""

import dataclasses

import keras
import numpy as np
import pytest

from mp_loop.data import batching, decoding, targets
from mp_loop.run import baselines, metric, record_checks, scoring, strict_json
from mp_loop.step import eval_step
from tests.support import data_sets


def classifier(shape, classes, **dense):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(classes, **dense),
        ]
    )


def read_back(found):
    return strict_json.parse(strict_json.to_line(found))


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_the_accuracy_is_that_of_the_evaluation(activation):
    source = data_sets.source(12, test_count=9)
    model = classifier(source.input_shape, 12, activation=activation)
    found = scoring.of(source, model, batch_size=4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
    evaluate = eval_step.EvalStep(model, loss, "sparse_categorical_accuracy")
    wanted = evaluate(batching.evaluation_batches(source, 4))
    assert found["top_1"] == pytest.approx(wanted["eval_accuracy"], abs=1e-6)
    whole = scoring.of(source, model, batch_size=100)  # less than a batch
    assert [whole[x] for x in ("top_1", "classes")] == [
        found["top_1"],
        found["classes"],
    ]
    assert record_checks.test_results_damage(read_back(found)) == ""
    assert len(found["worst"]) == 9 and found["worst"][0]["image"].startswith("data:")
    nothing = scoring.of(source, model, batch_size=4, show_examples=False)
    assert nothing == found | {"worst": [], "best": []}
    assert record_checks.test_results_damage(read_back(nothing)) == ""


def test_errors_and_baselines_are_in_the_units_of_the_data():
    generator = np.random.default_rng(0)
    rows, labels = generator.normal(size=(20, 2)), generator.normal(5e6, 1e3, (20, 1))
    of = targets.Targets.of(labels[:12], ("price",))
    source = dataclasses.replace(
        data_sets.source(3),
        train=decoding.Split(rows[:12], labels[:12]),
        test=decoding.Split(rows[12:], labels[12:]),
        kind="row", input_shape=(2,), mean=np.zeros(2), std=np.ones(2),
        class_names=(), targets=of, num_classes=1, task="regression",
    )  # fmt: skip
    model = classifier((2,), 1)
    found = scoring.of(source, model, batch_size=3)
    assert record_checks.test_results_damage(read_back(found)) == ""
    (price,) = found["targets"]
    measured = metric.make("mean_absolute_error", True, source)
    evaluate = eval_step.EvalStep(model, "mse", measured.metric)
    wanted = evaluate(batching.evaluation_batches(source, 3))["eval_accuracy"]
    assert price["mae"] == pytest.approx(wanted)
    constant = baselines.of(source, measured)
    assert constant["median_baseline"] == pytest.approx(price["median_mae"], rel=1e-5)
    error = np.abs(labels[12:] - labels[:12].mean()).mean()
    assert constant["mean_baseline"] == pytest.approx(error, rel=1e-5)


def test_several_labels():
    source = data_sets.source(3, test_count=3)
    flags = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]], np.uint8)
    test = decoding.Split(source.test.inputs, flags)
    source = dataclasses.replace(source, test=test, task="multilabel")
    model = classifier(source.input_shape, 3, activation="sigmoid")
    found = scoring.of(source, model, batch_size=2)
    assert record_checks.test_results_damage(read_back(found)) == ""
    assert [one["count"] for one in found["labels"]] == [2, 1, 2]
    assert baselines.of(source, metric.make("auc", False, source)) == {}


def test_what_has_neither_classes_nor_targets_has_nothing_to_tell():
    source = dataclasses.replace(data_sets.source(3), task="causal_lm")
    assert scoring.of(source, classifier(source.input_shape, 3), 2) is None
    assert baselines.of(source, metric.make("accuracy", True, source)) == {}
