"""How good predictions are."""

import numpy as np
import pytest

from mp_loop.data import raw_examples
from mp_loop.run import prediction, prediction_scores


def said(task, found, **wanted):
    names = wanted.pop("class_names", ())
    wanted = raw_examples.Wanted((1,), 0, names, task=task, **wanted)
    scores = prediction_scores.Scores(wanted)
    for label, values in found:
        example = raw_examples.Example("a", None, label)
        scores.add(prediction.Prediction(example, **values))
    assert scores.readable == len(found)
    return scores.lines()


def test_a_label_that_is_no_class_is_told():
    found = [("cat", "cat"), ("dog", "cat"), ("cow", "cat"), (None, "cat")]
    rows = [(label, {"class_name": name}) for label, name in found]
    assert said("classification", rows, class_names=("cat", "dog")) == [
        "accuracy 0.5000 on 2 examples with labels",
        "1 labels are no classes of the run",
    ]


def test_numbers_are_compared_with_numbers_or_with_yes_and_no():
    rows = [((1.0, 0.0), {"numbers": (0.5, 0.25)}), (None, {"numbers": (0.0, 0.0)})]
    assert said("regression", rows) == [
        "mean absolute error 0.375 on 1 examples with labels"
    ]
    assert said("multilabel", [((1, 0), {"numbers": (0.5, 0.6)})]) == [
        "binary accuracy 0.5000 on 1 examples with labels"
    ]


def test_pixels_of_classes_count_alone():
    label = np.array([[9, 9, 9, 9], [9, 0, 0, 9], [9, 255, 7, 9], [9, 9, 9, 9]])
    mask = np.array([[0, 255], [255, 255]], np.uint8)  # of the middle
    rows = [(label, {"mask": mask}), (None, {"mask": mask})]
    # Right: a 0 and a 255; a 0 was taken for 255; the 7 is no class.
    assert said("segmentation", rows, mask_values=(0, 255)) == [
        f"mean IoU {(1 / 2 + 1 / 2) / 2:.4f}, pixel accuracy {2 / 3:.4f} on 1 "
        "examples with labels"
    ]


def test_nothing_is_said_without_labels():
    assert said("segmentation", [(None, {"mask": np.zeros((2, 2), np.uint8)})]) == []


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_nothing_is_said_of_no_example(task):
    assert said(task, []) == []
