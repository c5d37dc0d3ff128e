"""Counts of pixels, and pictures of masks."""

import dataclasses

import keras
import numpy as np
import pytest

from mp_loop.data import decoding, masks, shown_examples
from mp_loop.run import baselines, mask_scores, metric, record_checks, scoring
from tests.run.scoring_test import classifier, read_back
from tests.support import data_sets

# Two images of four pixels; 255 does not count.
LABELS = np.array([[[0, 1], [1, 255]], [[0, 0], [2, 0]]], np.uint8)


def source(shape=(2, 2, 3)):
    made = data_sets.source(3, shape=shape, test_count=2)
    test = decoding.Split(made.test.inputs, LABELS)
    of = masks.Masks((0, 7, 9), (1.0, masks.weight(masks.counts(LABELS))))
    return dataclasses.replace(made, test=test, task="segmentation", masks=of)


def scores(predicted, batch=2):
    made = mask_scores.MaskScores(source())
    numbers, weights = (np.asarray(x) for x in masks.prepare(LABELS, 1.0))
    outputs = np.eye(3)[predicted]
    for first in range(0, 2, batch):
        part = slice(first, first + batch)
        made.add(numbers[part], outputs[part], weights[part])
    return made, outputs


@pytest.mark.parametrize("batch", [1, 2])
def test_pixels_that_do_not_count_are_left_out(batch):
    predicted = [[[0, 1], [0, 2]], [[1, 1], [2, 0]]]
    made, _ = scores(predicted, batch)
    values = made.values()
    colors = [one.pop("color") for one in values["classes"]]
    assert len({*colors}) == 3
    assert values == {
        "task": "segmentation",
        "examples": 2,
        "pixels": 7,
        "unusable": 0,
        "classes": [
            {"name": "0", "count": 4, "predicted": 3, "right": 2},
            {"name": "1", "count": 2, "predicted": 3, "right": 1},
            {"name": "2", "count": 1, "predicted": 1, "right": 1},
        ],
        "confused": [
            {"label": 0, "predicted": 1, "count": 2},
            {"label": 1, "predicted": 0, "count": 1},
        ],
    }
    assert made.shown() == {"worst": [1, 0]}
    found = made.example(0)
    assert found["right"] == pytest.approx(2 / 3)
    assert found["true_mask"] != found["predicted_mask"]


def test_an_output_that_is_not_finite_is_no_prediction():
    made, outputs = scores([[[0, 0], [0, 0]], [[0, 0], [0, 0]]])
    outputs[0, 0, 0, 2] = np.nan
    made = mask_scores.MaskScores(source())
    made.add(np.where(LABELS == 255, 0, LABELS), outputs)
    values = made.values()
    assert (values["unusable"], values["pixels"]) == (1, 8)
    assert [one["predicted"] for one in values["classes"]] == [7, 0, 0]
    assert made.example(0)["predicted_mask"].startswith("data:image/png")


def test_a_mask_colours_its_pixels_alone():
    of = source((2, 2, 1))
    mask = np.array([[0, -1], [-1, -1]])
    gray = shown_examples.masked(of, 1, np.full((2, 2), -1))
    assert gray != shown_examples.masked(of, 1, mask)
    assert gray == shown_examples.data_uri(np.repeat(of.test.inputs[1], 3, -1))


def test_of_a_model_and_beside_it_the_commonest_class():
    of = source()
    model = classifier(of.input_shape, 12)
    model = keras.Sequential([model, keras.layers.Reshape((2, 2, 3))])
    found = scoring.of(of, model, batch_size=1)
    assert record_checks.test_results_damage(read_back(found)) == ""
    assert found["pixels"] == 7 and "image" in found["worst"][0]
    constant = baselines.of(of, metric.make("mean_io_u", True, of))
    share = pytest.approx(4 / 7)
    assert constant == {
        "majority_accuracy": share,
        "majority_mean_iou": pytest.approx(4 / 21),
    }
