"""Masks are files beside the file of predictions."""

import csv

import numpy as np
import pytest

from mp_loop.data import mask_files, raw_examples
from mp_loop.run import prediction, prediction_files

WANTED = raw_examples.Wanted(
    (2, 2, 3), 0, ("0", "7"), task="segmentation", mask_values=(0, 7)
)
MASK = np.array([[0, 7], [7, 7]], np.uint8)


def found(name, label=None):
    return prediction.Prediction(raw_examples.Example(name, None, label), mask=MASK)


def test_each_example_has_a_mask_of_its_name(tmp_path):
    path = tmp_path / "p.csv"
    with prediction_files.replacing(path, WANTED) as write:
        for name in ("a/1.jpg", "a/1.png", "b.x.jpg", 3):
            write(found(name, MASK.T if name == 3 else None))
        assert not (tmp_path / "p_masks").exists()
    rows = list(csv.DictReader(path.read_text().splitlines()))
    places = ["a/1.png", "a/1.png.png", "b.x.png", "3.png"]
    assert [row["mask"] for row in rows] == [f"p_masks/{place}" for place in places]
    assert [row["accuracy"] for row in rows] == ["", "", "", "1.0"]
    for place in places:
        written = mask_files.decoded(str(tmp_path / "p_masks" / place))
        np.testing.assert_array_equal(written, MASK)


def test_what_was_there_stays_until_all_is_written(tmp_path):
    path = tmp_path / "p.csv"
    for name in ("old", "new"):
        with prediction_files.replacing(path, WANTED) as write:
            write(found(name))
    assert [x.name for x in (tmp_path / "p_masks").iterdir()] == ["new.png"]
    with (
        pytest.raises(KeyError),
        prediction_files.replacing(path, WANTED) as write,
    ):
        write(found("half"))
        raise KeyError
    assert [x.name for x in (tmp_path / "p_masks").iterdir()] == ["new.png"]
    assert "new" in path.read_text() and len(list(tmp_path.iterdir())) == 2
