"""Examples with several labels each."""

import json
import logging

import numpy as np
import pytest

from mp_loop.config import errors, sections
from mp_loop.data import batching, multilabel, raw_examples, sources

ROWS = [(i, i * i, i % 2, int(i % 3 == 0)) for i in range(40)]


def load(dataset, **settings):
    return sources.load(dataset, task="multilabel", **settings)


def csv(folder, rows=ROWS):
    lines = [",".join(map(str, row)) for row in [("a", "b", "odd", "third"), *rows]]
    (folder / "t.csv").write_text("\n".join(lines))
    return f"csv:{folder / 't.csv'}"


def jsonl(folder, rows=ROWS, **changes):
    lines = []
    for i, (a, b, *flags) in enumerate(rows):
        named = [x for x, flag in zip(("odd", "third"), flags, strict=True) if flag]
        labels = changes.get(f"row_{i}", named)
        lines.append(json.dumps({"a": a, "b": b, "tags": labels}))
    (folder / "t.jsonl").write_text("\n".join(lines))
    return f"jsonl:{folder / 't.jsonl'}"


def npz(folder, **changes):
    flags = np.array([[0, 1], [1, 0]] * 4)
    made = {
        "x_train": np.arange(24, dtype=np.float32).reshape(8, 3),
        "y_train": flags,
        "x_test": np.ones((2, 3)),
        "y_test": flags[:2].astype(bool),
    }
    made |= changes
    np.savez(folder / "a.npz", **made)
    return f"npz:{folder / 'a.npz'}"


def test_columns_and_lists_are_the_same_labels(tmp_path):
    of_columns = load(csv(tmp_path), label_column="odd, third")
    of_lists = load(jsonl(tmp_path), label_column="tags")
    for made in (of_columns, of_lists):
        assert made.class_names == ("odd", "third") and made.num_classes == 2
        assert made.columns == ("a", "b") and made.targets is None
        for split in (made.train, made.test):
            a = split.inputs[:, 0]
            assert split.labels.dtype == np.uint8
            np.testing.assert_array_equal(split.labels.T, [a % 2, a % 3 == 0])
    np.testing.assert_array_equal(of_columns.test.inputs, of_lists.test.inputs)
    # What is held out follows from the inputs, whatever the labels are.
    one = load(csv(tmp_path), label_column="odd", input_columns="a,b")
    np.testing.assert_array_equal(one.test.inputs, of_columns.test.inputs)
    assert one.test.labels.shape == (len(one.test), 1)


def test_a_batch_holds_floats(tmp_path):
    made = load(npz(tmp_path))
    (_, labels), *_ = batching.training_batches(made, 8, seed=0, epoch=0)
    assert labels.dtype == "float32" and labels.shape == (8, 2)
    assert made.class_names == ("0", "1")
    named = load(npz(tmp_path, class_names=np.array(["cat", "dog"])))
    assert named.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("value", "flag"),
    [("1", 1), ("0.0", 0), (True, 1), ("False", 0), (" true", 1)],
)
def test_what_says_yes_or_no(value, flag):
    assert multilabel.flag(value) == flag


@pytest.mark.parametrize("value", ["", "cat", "nan", "2", "0.5"])
def test_a_row_without_a_flag_is_bad(tmp_path, value):
    path = csv(tmp_path, [*ROWS[:7], (5, 5, 1, value), *ROWS[7:]])
    with pytest.raises(errors.DataError, match=r"t\.csv, line 9, column 'third': "):
        load(path, label_column="odd,third")
    made = load(path, label_column="odd,third", skip_bad_examples=True)
    assert len(made.train) + len(made.test) == 40


@pytest.mark.parametrize("value", ["odd", ["odd", None], [["odd"]], [""], 1])
def test_a_row_without_a_list_of_names_is_bad(tmp_path, value):
    path = jsonl(tmp_path, row_7=value)
    with pytest.raises(errors.DataError, match=r"line 8, column 'tags': .* no list"):
        load(path, label_column="tags")


def test_a_class_that_there_is_nothing_to_learn_of_is_bad(tmp_path, caplog):
    flags = np.array([[0, 1, 0], [1, 0, 0]] * 4)
    test = np.array([[0, 1, 1], [1, 0, 0]])
    arrays = {"y_train": flags, "y_test": test}
    said = r"class 2: no example to train on, but 1 to evaluate on"
    with pytest.raises(errors.DataError, match=said):
        load(npz(tmp_path, **arrays))
    with caplog.at_level(logging.WARNING):
        made = load(npz(tmp_path, **arrays), skip_bad_examples=True)
    assert made.class_names == ("0", "1") and made.test.labels.shape == (2, 2)
    assert "class 2" in caplog.text


BAD = {
    "class numbers": (
        {"y_train": np.arange(8)},
        r"y_train is int64 \[8\]; labels of --task=multilabel must be 0 and 1, "
        r"\[n, classes\]",
    ),
    "neither 0 nor 1": (
        {"y_train": np.array([[0, 1], [3, 0]] * 4)},
        r"y_train\[1, 0\]: 3.0 is neither 0 nor 1",
    ),
    "other columns": (
        {"y_test": np.ones((2, 3))},
        "must have the same targets or labels",
    ),
    "other names": (
        {"class_names": np.array(["a"])},
        r"y_train is \[8, 2\], and there are 1 class_names",
    ),
    "names that are the same": (
        {"class_names": np.array(["a", "a"])},
        "the names of classes must differ",
    ),
    "nothing that is right": (
        {"y_train": np.zeros((8, 2), int)},
        "class 0: no example to train on",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_arrays_that_hold_other_labels_are_refused(tmp_path, name):
    changes, said = BAD[name]
    with pytest.raises(errors.DataError, match=said) as error:
        load(npz(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_data_with_one_label_are_refused():
    with pytest.raises(errors.UsageError, match="has no columns of labels"):
        load("fashion_mnist_mini")


@pytest.mark.parametrize("kind", [csv, jsonl])
def test_examples_to_predict_on_have_labels_where_the_file_has(tmp_path, kind):
    columns = "tags" if kind is jsonl else "odd,third"
    wanted = raw_examples.Wanted(
        (2,), 0, ("odd", "third"), None, ("a", "b"), task="multilabel"
    )
    data = sections.Data(dataset=kind(tmp_path, ROWS[:4]), label_column=columns)
    found = list(raw_examples.read(data, wanted, split=""))
    assert [x.label for x in found] == [(0, 1), (1, 0), (0, 0), (1, 1)]
    data = sections.Data(dataset=kind(tmp_path), label_column=columns)
    held = sources.from_settings(data, task="multilabel").test
    found = list(raw_examples.read(data, wanted, split="test"))
    assert [x.label for x in found] == list(map(tuple, held.labels.tolist()))
    # A run that knows other classes, and a table without labels.
    other = raw_examples.Wanted(
        (2,), 0, ("third", "x"), None, ("a", "b"), task="multilabel"
    )
    found = list(raw_examples.read(data, other, split="test"))
    assert [x.label for x in found] == [(flag, 0) for flag in held.labels[:, 1]]


def test_a_table_to_predict_on_needs_no_labels(tmp_path):
    (tmp_path / "t.csv").write_text("b,a\n1,2\n")
    data = sections.Data(dataset=f"csv:{tmp_path / 't.csv'}", label_column="odd,third")
    wanted = raw_examples.Wanted(
        (2,), 0, ("odd", "third"), None, ("a", "b"), task="multilabel"
    )
    (found,) = raw_examples.read(data, wanted, split="")
    assert found.label is None and found.inputs.tolist() == [2, 1]
