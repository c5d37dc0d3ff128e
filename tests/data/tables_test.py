"""Tables of labelled texts and numbers, CSV and JSON Lines."""

import json
import logging

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.config import errors
from mp_loop.data import batching, decoding, number_rows, sources
from tests.support import photos

NUMBERS = "a,b,label\n1,2.5,yes\n-3,1e3,no\n\n5,0,yes\n"


def write(tmp_path, **files):
    for name, content in files.items():
        content = content.encode() if isinstance(content, str) else content
        (tmp_path / name.replace("_", ".")).write_bytes(content)
    return tmp_path


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def tokenize(texts):
    """The lengths of the words."""
    rows = [[len(word) for word in text.decode().split()] for text in texts]
    return np.array([(row + [0] * 3)[:3] for row in rows], np.int32)


def of(folder, kind, **settings):
    return sources.load(f"{kind}:{folder}", **settings)


OBJECTS = (
    {"b": 2.5, "label": "yes", "a": 1},
    {"a": "-3", "b": 1e3, "label": "no"},
    {"a": 5, "b": False, "label": "yes", "more": [1]},
)
FILES = {"csv": NUMBERS, "jsonl": jsonl(*OBJECTS)}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("test", ["test", "validation", "val"])
def test_a_table_of_numbers_is_rows(tmp_path, kind, test):
    folder = write(
        tmp_path, **{f"train_{kind}": FILES[kind], f"{test}_{kind}": FILES[kind]}
    )
    made = of(folder, kind, input_columns="a, b")
    assert (made.kind, made.input_shape) == ("row", (2,)) and not made.is_text
    assert made.class_names == ("no", "yes")
    for split in (made.train, made.test):
        assert split.inputs.dtype == np.float64
        assert split.inputs.tolist() == [[1, 2.5], [-3, 1000], [5, 0]]
        assert split.labels.tolist() == [1, 0, 1]
    first = of(folder, kind)
    assert (first.train.inputs[0].tolist() == [1, 2.5]) == (kind == "csv")


def test_models_get_standardized_float32_of_numbers_that_float32_would_not_tell_apart(
    tmp_path,
):
    rows = [f"{1.7e9 + second},7.1,{second % 2}" for second in range(8)]
    table = "\n".join(["time,flat,label", *rows])
    made = of(write(tmp_path, train_csv=table, test_csv=table), "csv")
    wanted = (np.arange(8) - 3.5) / np.std(np.arange(8))
    (inputs, _), *_ = batching.evaluation_batches(made, 8)
    assert inputs.dtype == tf.float32
    np.testing.assert_allclose(inputs[:, 0], wanted, rtol=1e-6)
    np.testing.assert_array_equal(inputs[:, 1], np.zeros(8))  # a constant column
    for batch, _ in batching.training_batches(made, 4, 0, 0):
        assert set(batch[:, 0].numpy()) < set(inputs[:, 0].numpy())
    with pytest.raises(errors.DataError, match="is for images, not for rows"):
        batching.training_batches(made, 4, 0, 0, augment="flip_shift")


def test_a_constant_column_has_deviation_1_whatever_its_sum_is_rounded_to():
    mean, std = number_rows.moments(np.full((1000, 1), 0.1))
    assert (mean, std) == (0.1, 1)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_column_of_texts_becomes_tokens(tmp_path, kind):
    rows = [("one", 1, "pos"), ("two,\nthree", 2, "neg"), ('f\u00fcnf "6"', 3, "pos")]
    if kind == "csv":
        quoted = ['"' + text.replace('"', '""') + f'",{i},{x}' for text, i, x in rows]
        content = "\ufefftext,id,label\r\n" + "\r\n".join(quoted)
    else:
        content = jsonl(*({"text": t, "id": i, "label": x} for t, i, x in rows))
    folder = write(tmp_path, **{f"train_{kind}": content, f"test_{kind}": content})
    made = of(folder, kind, tokenize=tokenize, input_columns="text")
    assert made.is_text and made.input_shape == (3,)
    assert made.train.inputs.tolist() == [[3, 0, 0], [4, 5, 0], [4, 3, 0]]
    assert made.train.inputs.dtype == np.int32
    assert made.class_names == ("neg", "pos") and made.test.labels.tolist() == [1, 0, 1]


def test_labels_that_are_integers_are_ordered_as_such(tmp_path):
    rows = [f"{i},{label}" for i, label in enumerate([10, 9, 2, 10, 9, -1])]
    table = "\n".join(["x,y", *rows])
    folder = write(tmp_path, train_csv=table, test_csv="y,x\n9,0\n10,0\n")
    made = of(folder, "csv", label_column="y")
    assert made.class_names == ("-1", "2", "9", "10")
    assert made.train.labels.tolist() == [3, 2, 1, 3, 2, 0]
    assert made.test.labels.tolist() == [2, 3]


def test_rows_of_one_file_are_held_out_by_what_they_hold(tmp_path):
    lines = [f"{i},{i % 2}" for i in range(100)]
    header = "x,label"

    def held_out(rows):
        path = write(tmp_path, a_csv="\n".join([header, *rows])) / "a.csv"
        made = of(path, "csv", validation_fraction=0.3)
        assert not set(made.train.inputs[:, 0]) & set(made.test.inputs[:, 0])
        assert len(made.train) + len(made.test) == len(rows)
        return sorted(made.test.inputs[:, 0])

    first = held_out(lines)
    assert 15 < len(first) < 45
    # Another order, and a row that is there twice, is on one side.
    assert held_out(lines[::-1]) == first
    assert held_out([*lines, lines[int(first[0])]]) == sorted([*first, first[0]])


# What is in train.csv or train.jsonl beside two good rows; and what is said.
BAD = {
    "a number that is missing": ("csv", ",2,yes", "column 'a': nothing is there"),
    "a word": ("csv", "x,2,yes", "line 4, column 'a': 'x' is no finite number of"),
    "a number that is none": ("csv", "1,nan,yes", "column 'b': 'nan' is no finite"),
    "infinity": ("csv", "-inf,2,yes", "column 'a': '-inf' is no finite number"),
    "beyond float32": ("csv", "1,1e39,yes", "column 'b': '1e39' is no finite number"),
    "a label that is missing": ("csv", "1,2,", "column 'label': nothing is there"),
    "too few values": ("csv", "1,2", "line 4: 2 values for 3 columns"),
    "too many values": ("csv", "1,2,yes,4", "line 4: 4 values for 3 columns"),
    "no JSON": ("jsonl", "{'a': 1}", "train.jsonl, line 3: is no JSON object"),
    "no text": ("jsonl", '{"a": 1, "b": 2, "label": "\\ud800"}', "is no JSON object"),
    "no object": ("jsonl", "[1, 2]", "line 3: is no JSON object"),
    "a key that is missing": ("jsonl", '{"a": 1, "label": "yes"}', "'b': nothing is"),
    "null": ("jsonl", '{"a": null, "b": 1, "label": "yes"}', "column 'a': nothing is"),
    "a huge integer": (
        "jsonl", '{"a": 1' + 400 * "0" + ', "b": 1, "label": "yes"}', "column 'a': 1000"
    ),
    "no label": ("jsonl", '{"a": 1, "b": 2}', "column 'label': nothing is there"),
    "a list": (
        "jsonl", '{"a": 1, "b": 2, "label": [1]}', "'label': is no single value"
    ),
}  # fmt: skip
GOOD = {
    "csv": "a,b,label\n1,2,yes\n3,4,no\n",
    "jsonl": '{"a": 1, "b": 2, "label": "yes"}\n{"a": 3, "b": 4, "label": "no"}\n',
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_or_left_out(tmp_path, caplog, name):
    kind, row, said = BAD[name]
    files = {f"train_{kind}": f"{GOOD[kind]}{row}\n", f"test_{kind}": GOOD[kind]}
    folder = write(tmp_path, **files)
    with pytest.raises(errors.DataError) as refused:
        of(folder, kind)
    assert "1 bad example (" in str(refused.value) and said in str(refused.value)
    assert f"train.{kind}, line {4 if kind == 'csv' else 3}" in str(refused.value)
    with caplog.at_level(logging.WARNING):
        made = of(folder, kind, skip_bad_examples=True)
    assert made.train.inputs.tolist() == [[1, 2], [3, 4]]
    (record,) = caplog.records
    assert said in record.getMessage()


def test_a_text_that_is_missing_is_named(tmp_path):
    content = "text,label\na,yes\n,no\nb,no\n"
    folder = write(tmp_path, train_csv=content, test_csv="text,label\na,yes\n")
    with pytest.raises(errors.DataError, match="line 3, column 'text': nothing is th"):
        of(folder, "csv", tokenize=tokenize)
    made = of(folder, "csv", tokenize=tokenize, skip_bad_examples=True)
    assert len(made.train) == 2


IMAGES = {f"photos/{i}.png": photos.flat(i, size=4 + i % 2) for i in range(40)}
# Of each task: the label of an image of this number, as it stands and as it is held.
OF_IMAGES = {
    "classification": (lambda i: ("no", "yes")[i % 2], lambda i: i % 2),
    "multilabel": (lambda i: ["no", "yes"][i % 2 :], lambda i: [i % 2 == 0, 1]),
    "regression": (lambda i: i / 4, lambda i: [i / 4]),
}


@pytest.mark.parametrize("task", OF_IMAGES)
@pytest.mark.parametrize("limit", [1.0, 1e-9])
def test_a_column_of_names_of_files_becomes_images(tmp_path, task, limit):
    label, held = OF_IMAGES[task]
    rows = [{"file": name, "label": label(i)} for i, name in enumerate(IMAGES)]
    photos.write(tmp_path, IMAGES | {"all.jsonl": jsonl(*rows).encode()})
    settings = {"validation_fraction": 0.3, "max_data_gib": limit, "task": task}
    with pytest.raises(errors.DataError, match=r"--image_size makes them equal"):
        of(tmp_path / "all.jsonl", "jsonl", **settings)
    made = of(tmp_path / "all.jsonl", "jsonl", image_size=4, **settings)
    assert (made.kind, made.input_shape, made.columns) == (
        "image",
        (4, 4, 3),
        ("file",),
    )
    assert (made.train.not_held is None) == (limit == 1)
    assert {*made.train.names, *made.test.names} == {*IMAGES}
    for split in (made.train, made.test):
        assert len(split) == len(split.names) > 5
        for place, name in enumerate(split.names):
            number = [*IMAGES].index(name)
            assert np.all(split.one(place) == number)
            assert np.all(split.labels[place] == held(number))


def test_images_of_a_table_are_by_its_folder_and_bad_ones_are_named(tmp_path):
    good = ["1.png,yes", f"{tmp_path}/photos/2.png,no"]
    bad = ["3.png,yes", ",no", "photos.csv,no"]
    table = "\n".join(["f,label", *good, *bad]).encode()
    photos.write(
        tmp_path, {"photos/1.png": 1, "photos/2.png": 2, "photos/a.csv": table}
    )
    settings = {"validation_fraction": 0.5, "input_columns": "f"}
    with pytest.raises(errors.DataError) as refused:
        of(tmp_path / "photos/a.csv", "csv", **settings)
    for said in (
        "a.csv, line 5, column 'f': nothing is there",
        "a.csv, line 4, 3.png: No such file or directory",
        "a.csv, line 6, photos.csv: No such file or directory",
    ):
        assert said in str(refused.value)


CSV = "text,n,label\ngood,1,yes\nbad,2,no\n"
REFUSED = {
    "no column of labels": (
        {"train_csv": "a,b\n1,2\n"}, {},
        "there is no column 'label' (--label_column); there is a, b.",
    ),
    "no such column": (
        {"train_csv": CSV}, {"input_columns": "n,m"},
        "there is no column 'm' (--input_columns); there is text, n, label.",
    ),
    "another table to evaluate on": (
        {"train_csv": CSV, "test_csv": "text,label\nx,yes\n"}, {"input_columns": "n"},
        "there is no column 'n' (--input_columns); there is text, label.",
    ),
    "the label as an input": (
        {"train_csv": CSV}, {"input_columns": "n,label"}, "must have different names",
    ),
    "no input": ({"train_csv": "label\nyes\n"}, {}, "one beside that of the labels"),
    "equal names": ({"train_csv": "a,a,label\n1,2,x\n"}, {}, "must have different"),
    "other separators": (
        {"train_csv": "a;label\n1;x\n"}, {}, "(--label_column); there is a;label.",
    ),
    "texts without a model of texts": (
        {"train_csv": CSV}, {},
        "column 'text' holds no number, but 'good' (train.csv, line 2): texts need a "
        "--model of keras_hub",
    ),
    "several columns for a model of texts": (
        {"train_csv": CSV}, {"tokenize": tokenize}, "there is text, n: --input_columns",
    ),
    "an empty file": ({"train_csv": ""}, {}, "there is nothing"),
    "no row": ({"train_csv": "a,label\n"}, {}, "has no example to train on"),
    "one class": (
        {"train_csv": "a,label\n1,x\n2,x\n", "test_csv": "a,label\n1,x\n"}, {},
        "has the class 'x' alone to train on",
    ),
    "a class that is not to train on": (
        {"train_csv": GOOD["csv"], "test_csv": "a,b,label\n1,2,maybe\n3,4,no\n"}, {},
        "class maybe: no example to train on, but 1 to evaluate on",
    ),
    "no UTF-8": ({"train_csv": b"a,label\n\xff,x\n"}, {}, "must be text in UTF-8"),
    "an open quote": ({"train_csv": 'a,label\n"1,x\n'}, {}, "cannot be read: unexp"),
    "no file to train on": (
        {"test_csv": CSV}, {}, "must hold train.csv, and may hold test.csv.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(tmp_path, name):
    files, settings, said = REFUSED[name]
    with pytest.raises(errors.DataError) as refused:
        of(write(tmp_path, **files), "csv", **settings)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"Data set 'csv:{tmp_path}'")


def test_more_than_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_DECODED_BYTES", 64)
    folder = write(tmp_path, train_csv=GOOD["csv"], test_csv=GOOD["csv"])
    assert of(folder, "csv").num_classes == 2
    monkeypatch.setattr(decoding, "MAX_DECODED_BYTES", 63)
    with pytest.raises(errors.DataError, match="at most .* GiB fit"):
        of(folder, "csv")


def test_a_text_may_be_longer_than_pythons_limit(tmp_path):
    content = f"text,label\n{'word ' * 40_000},yes\nshort,no\n"
    folder = write(tmp_path, train_csv=content, test_csv=content)
    assert len(of(folder, "csv", tokenize=tokenize).train) == 2
