"""Data sets whose labels are numbers."""

import json

import numpy as np
import pytest

from mp_loop.config import errors, sections
from mp_loop.data import batching, raw_examples, sources

ROWS = [(i, i * i, 10.0 * i, -float(i)) for i in range(40)]


def load(dataset, **settings):
    return sources.load(dataset, task="regression", **settings)


def table(folder, kind, rows=ROWS, names=("a", "b", "y", "z")):
    path = folder / f"t.{kind}"
    if kind == "csv":
        lines = [",".join(map(str, row)) for row in [names, *rows]]
    else:
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    path.write_text("\n".join(lines))
    return f"{kind}:{path}"


def npz(folder, **changes):
    made = {
        "x_train": np.arange(24, dtype=np.float32).reshape(8, 3),
        "y_train": np.arange(8.0),
        "x_test": np.ones((2, 3)),
        "y_test": np.array([[4], [5]]),
    }
    made |= changes
    np.savez(folder / "a.npz", **{k: v for k, v in made.items() if v is not None})
    return f"npz:{folder / 'a.npz'}"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_columns_of_a_table_are_targets(tmp_path, kind):
    made = load(table(tmp_path, kind), label_column="y, z")
    assert made.columns == ("a", "b") and made.input_shape == (2,)
    assert made.targets.names == ("y", "z") and made.num_classes == 2
    assert made.class_names == ()
    for split in (made.train, made.test):
        assert split.labels.dtype == np.float64
        np.testing.assert_array_equal(split.labels[:, 0], 10 * split.inputs[:, 0])
        np.testing.assert_array_equal(split.labels[:, 1], -split.inputs[:, 0])
    assert len(made.train) + len(made.test) == 40
    # What is held out follows from the inputs, whatever the targets are.
    one = load(table(tmp_path, kind), label_column="z", input_columns="a,b")
    np.testing.assert_array_equal(one.test.inputs, made.test.inputs)


def test_a_batch_holds_standardized_targets(tmp_path):
    made = load(table(tmp_path, "csv"), label_column="y,z")
    (_, labels), *_ = batching.training_batches(made, len(made.train), seed=0, epoch=0)
    assert labels.dtype == "float32" and labels.shape == (len(made.train), 2)
    np.testing.assert_allclose(np.mean(labels, axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(np.std(labels, axis=0), 1, rtol=1e-6)
    _, labels = next(iter(batching.evaluation_batches(made, 100)))
    np.testing.assert_allclose(made.targets.in_units(labels), made.test.labels, 1e-6)


@pytest.mark.parametrize("value", ["", "cat", "nan", "1e39"])
def test_a_row_without_a_number_is_bad(tmp_path, value):
    path = table(tmp_path, "csv", [*ROWS[:7], (5, 5, 5, value), *ROWS[7:]])
    with pytest.raises(errors.DataError, match=r"t\.csv, line 9, column 'z': "):
        load(path, label_column="y,z")
    made = load(path, label_column="y,z", skip_bad_examples=True)
    assert len(made.train) + len(made.test) == 40


def test_images_of_arrays_have_targets(tmp_path):
    images = np.zeros((8, 4, 4, 3), np.uint8)
    labels = np.arange(16, dtype=np.float32).reshape(8, 2)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    made = load(npz(tmp_path, **arrays))
    assert made.kind == "image" and made.targets.names == ("0", "1")
    np.testing.assert_array_equal(made.train.labels, labels)
    made = load(npz(tmp_path))
    assert made.train.labels.shape == (8, 1) and made.test.labels.tolist() == [[4], [5]]


BAD = {
    "names of classes": (
        {"class_names": np.array(["a", "b"])},
        "has class_names, and --task=regression has no classes",
    ),
    "texts": ({"y_train": np.array(["a"] * 8)}, "y_train is <U1 .* must be numbers"),
    "another number of targets": (
        {"y_test": np.ones((2, 2))},
        "examples must have the same targets",
    ),
    "no number": (
        {"y_train": np.array([0, 1, np.nan, 3, 4, 5, 6, 7])},
        r"y_train\[2, 0\]: nan is no finite number",
    ),
    "other examples": ({"y_train": np.ones(7)}, "one label for each example"),
}


@pytest.mark.parametrize("name", BAD)
def test_arrays_that_hold_no_targets_are_refused(tmp_path, name):
    changes, said = BAD[name]
    with pytest.raises(errors.DataError, match=said) as error:
        load(npz(tmp_path, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dataset", ["fashion_mnist_mini", "folder:photos"])
def test_data_with_classes_are_refused(dataset):
    with pytest.raises(errors.UsageError, match=r"--dataset \(.*\) has no targets"):
        load(dataset)


def test_examples_to_predict_on_have_targets_where_the_file_has(tmp_path):
    wanted = raw_examples.Wanted(
        (2,), 0, (), None, ("a", "b"), ("y", "z"), "regression"
    )
    path = table(tmp_path, "csv", [*ROWS[:2], (2, 4, "", 3)])
    data = sections.Data(dataset=path, label_column="y,z")
    found = list(raw_examples.read(data, wanted, split=""))
    assert [x.inputs.tolist() for x in found] == [[0, 0], [1, 1], [2, 4]]
    assert [x.label for x in found] == [(0.0, -0.0), (10.0, -1.0), None]
    data = sections.Data(dataset=table(tmp_path, "csv"), label_column="y,z")
    held = sources.from_settings(data, task="regression").test
    found = list(raw_examples.read(data, wanted, split="test"))
    assert [x.label for x in found] == list(map(tuple, held.labels.tolist()))
    data = sections.Data(dataset=table(tmp_path, "jsonl", [(1, 2)], "ab"))
    (found,) = raw_examples.read(data, wanted, split="")
    assert found.label is None and found.inputs.tolist() == [1, 2]


def test_texts_have_targets(tmp_path):
    def tokenize(texts):
        return np.array([[len(text), 1] for text in texts], np.int32)

    rows = [("a" * (i + 1), 0.5 * (i + 1)) for i in range(30)]
    path = table(tmp_path, "jsonl", rows, ("text", "y"))
    made = load(path, label_column="y", tokenize=tokenize)
    assert made.is_text and made.targets.names == ("y",)
    np.testing.assert_array_equal(made.train.labels[:, 0], made.train.inputs[:, 0] / 2)
