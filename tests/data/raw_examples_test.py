"""What is predicted on: examples by name, one after the other."""

import dataclasses

import numpy as np
import pytest

from mp_loop.config import errors, sections
from mp_loop.data import raw_examples, resizing, sources
from tests.support import data_sets, photos

GRAY = raw_examples.Wanted((28, 28, 1), 0, ("Bag", "Coat"))
COLOR = raw_examples.Wanted((4, 4, 3), 0, ("cat", "dog"))
RESIZED = dataclasses.replace(COLOR, resized_to=4)


def read(dataset, wanted, split="", **settings):
    return list(
        raw_examples.read(sections.Data(dataset=dataset, **settings), wanted, split)
    )


def labels(examples):
    return {example.name: example.label for example in examples}


def test_a_split_of_tfds_has_places_and_labels():
    mini = sources.load("fashion_mnist_mini")
    found = read("fashion_mnist_mini", GRAY, "test[:9]")
    assert [x.name for x in found] == list(range(9))
    np.testing.assert_array_equal([x.inputs for x in found], mini.test.inputs[:9])
    wanted = [mini.class_names[i] for i in mini.test.labels[:9]]
    assert [x.label for x in found] == wanted


def test_images_of_any_size_are_resized_as_for_the_training(tmp_path):
    examples = data_sets.pictures(4, 5, 9)
    data_sets.write(tmp_path, data_sets.ANY_IMAGE, data_sets.LABEL, examples)
    found = read("made", RESIZED, "train", data_dir=str(tmp_path))
    assert [x.label for x in found] == ["cat", "dog", "cat"]
    for example, made in zip(found, examples, strict=True):
        wanted = resizing.resized(made["image"][None], 4)[0]
        np.testing.assert_array_equal(example.inputs, wanted)


@pytest.fixture
def folder(tmp_path):
    files = {"cat/a.png": 1, "b.png": 2, "new/deep/c.png": 3, "dog/d.jpg": b"no image"}
    return f"folder:{photos.write(tmp_path / 'photos', files)}"


def test_a_folder_of_any_layout_is_read_whole(folder):
    found = read(folder, COLOR)
    assert labels(found) == {
        "b.png": None, "cat/a.png": "cat", "dog/d.jpg": "dog", "new/deep/c.png": None
    }  # fmt: skip
    values = {x.name: x.inputs.max() for x in found if not x.problem}
    assert values == {"b.png": 2, "cat/a.png": 1, "new/deep/c.png": 3}
    (bad,) = [x for x in found if x.problem]
    assert (bad.name, bad.inputs) == ("dog/d.jpg", None)


def test_an_image_has_the_channels_that_the_model_takes(folder):
    gray = dataclasses.replace(COLOR, shape=(4, 4, 1))
    assert {x.inputs.shape for x in read(folder, gray) if not x.problem} == {(4, 4, 1)}


def test_a_split_of_a_folder_is_that_of_the_training(tmp_path):
    files = {f"{label}/{i}.png": i for label in ("cat", "dog") for i in range(20)}
    folder = f"folder:{photos.write(tmp_path, files)}"
    source = sources.load(folder, validation_fraction=0.3)
    found = read(folder, COLOR, "test", validation_fraction=0.3)
    np.testing.assert_array_equal([x.inputs for x in found], source.test.inputs)
    wanted = [source.class_names[i] for i in source.test.labels]
    assert [x.label for x in found] == wanted
    assert len(read(folder, COLOR, "train", validation_fraction=0.3)) == len(
        source.train
    )


def test_arrays_are_read_as_for_the_training(tmp_path):
    images, classes = np.zeros((4, 4, 4, 3), np.uint8), np.array(["cat", "dog"] * 2)
    path = tmp_path / "data.npz"
    np.savez(path, x_train=images, y_train=classes, x_test=images + 1, y_test=classes)
    found = read(f"npz:{path}", COLOR)
    assert [x.label for x in found] == classes.tolist()
    assert {x.inputs.max() for x in found} == {1}
    assert {x.inputs.max() for x in read(f"npz:{path}", COLOR, "train")} == {0}


REFUSED = {
    "no such split": ("fashion_mnist_mini", GRAY, "val", "the splits .*, not 'val'"),
    "another shape": (
        "fashion_mnist_mini", COLOR, "", r"0 is \(28, 28, 1\); the model takes "
        r"\(4, 4, 3\)"
    ),
    "texts": (
        "fashion_mnist_mini",
        dataclasses.replace(GRAY, tokenizer=len),
        "",
        "must have a Text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    *arguments, said = REFUSED[name]
    with pytest.raises(errors.DataError, match=said):
        read(*arguments)


FOLDERS = {
    "no image": ({"a.txt": b""}, COLOR, "", "has no image"),
    "another shape": ({"a/b.png": 1, "a/c.png": photos.flat(1, 5)}, COLOR, "", "a/c.p"),
    "no such split": ({"a/b.png": 1}, COLOR, "all", "train and test, not 'all'"),
    "two channels": (
        {"a/b.png": 1}, dataclasses.replace(COLOR, shape=(4, 4, 2)), "", "2 channels"
    ),
    "texts": (
        {"a/b.png": 1}, raw_examples.Wanted((8,), 0, (), len), "", "holds images, which"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, name):
    files, wanted, split, said = FOLDERS[name]
    with pytest.raises(errors.DataError, match=said):
        read(f"folder:{photos.write(tmp_path, files)}", wanted, split)


ROWS = raw_examples.Wanted((2,), 0, ("no", "7"), columns=("b", "a"))
TABLE = "a,label,b\n1,no,2.5\nx,no,1\n3,007,-4\n5,6\n7,,8\n"


def test_a_table_has_the_columns_of_the_training_and_may_have_no_labels(tmp_path):
    (tmp_path / "a.csv").write_text(TABLE)
    found = read(f"csv:{tmp_path / 'a.csv'}", ROWS)
    kept = {x.name: (x.inputs.tolist(), x.label) for x in found if not x.problem}
    assert kept == {
        "a.csv, line 2": ([2.5, 1], "no"),
        "a.csv, line 4": ([-4, 3], "7"),
        "a.csv, line 6": ([8, 7], None),
    }
    assert {x.name: x.problem for x in found if x.problem} == {
        "a.csv, line 3": "column 'a' holds no finite number of float32",
        "a.csv, line 5": "2 values for 3 columns",
    }
    (tmp_path / "b.jsonl").write_text('{"b": 1, "a": 2}\n[]\n')
    one, bad = read(f"jsonl:{tmp_path / 'b.jsonl'}", ROWS)
    assert (one.inputs.tolist(), one.label) == ([1, 2], None)
    assert (bad.name, bad.problem) == ("b.jsonl, line 2", "is no JSON object")
    with pytest.raises(errors.DataError, match="no column 'b', which the model reads"):
        (tmp_path / "c.csv").write_text("a,label\n1,no\n")
        read(f"csv:{tmp_path / 'c.csv'}", ROWS)


def test_images_of_a_table_are_named_by_their_files(tmp_path):
    table = b"x,file,label\n1,a.png,no\n2,,7\n3,b.png,7\n4,c.png,\n"
    photos.write(tmp_path, {"a.png": 1, "c.png": 3, "t.csv": table})
    wanted = dataclasses.replace(ROWS, shape=(4, 4, 3), columns=("file",))
    first, empty, missing, last = read(f"csv:{tmp_path / 't.csv'}", wanted)
    assert (first.name, first.label) == ("a.png", "no") and np.all(first.inputs == 1)
    assert (last.name, last.label) == ("c.png", None) and np.all(last.inputs == 3)
    assert (missing.name, missing.label) == ("b.png", "7")
    assert missing.problem.startswith("No such file")
    assert (empty.name, empty.problem) == (
        "t.csv, line 3",
        "column 'file': nothing is there",
    )


@pytest.mark.parametrize("limit", [1.0, 1e-9])
def test_images_of_a_table_s_split_are_named_by_their_files(tmp_path, limit):
    files = {f"{i}.png": i for i in range(20)}
    lines = [f"{name},{('no', 'yes')[i % 2]}" for i, name in enumerate(files)]
    table = "\n".join(["file,label", *lines]).encode()
    photos.write(tmp_path, files | {"t.csv": table})
    dataset = f"csv:{tmp_path / 't.csv'}"
    source = sources.load(dataset, validation_fraction=0.4, max_data_gib=limit)
    data = sections.Data(dataset=dataset, validation_fraction=0.4, max_data_gib=limit)
    wanted = raw_examples.Wanted((4, 4, 3), 0, ("no", "yes"), columns=("file",))
    for split, held in (("train", source.train), ("test", source.test)):
        found = list(raw_examples.read(data, wanted, split))
        assert [x.name for x in found] == [*held.names]
        assert all(np.all(x.inputs == files[x.name]) for x in found)
        assert [x.label for x in found] == [source.class_names[i] for i in held.labels]


def test_a_split_of_a_table_is_that_of_the_training(tmp_path):
    lines = [f"{i},{('no', 'yes')[i % 2]},{-i}" for i in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["a,label,b", *lines]))
    source = sources.load(f"csv:{tmp_path / 'a.csv'}", input_columns="b,a")
    found = read(f"csv:{tmp_path / 'a.csv'}", ROWS, "test")
    np.testing.assert_array_equal([x.inputs for x in found], source.test.inputs)
    assert [x.label for x in found] == [
        source.class_names[i] for i in source.test.labels
    ]


def test_a_text_of_a_table_is_bytes(tmp_path):
    (tmp_path / "a.csv").write_text("id,t\n1,Grüße\n2,\n")
    wanted = raw_examples.Wanted((8,), 0, ("no",), tokenizer=len, columns=("t",))
    one, bad = read(f"csv:{tmp_path / 'a.csv'}", wanted)
    assert (one.inputs.decode(), one.label) == ("Grüße", None)
    assert bad.problem == "column 't': nothing is there"
