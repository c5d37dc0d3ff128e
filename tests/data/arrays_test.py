"""Arrays of images, in a file of NumPy."""

import io

import numpy as np
import pytest

from mp_loop.config import errors
from mp_loop.data import decoding, resizing, sources, splitting

GENERATOR = np.random.default_rng(0)


def images(count, shape=(4, 4)):
    """Image i is filled with i."""
    made = np.zeros((count, *shape), np.uint8)
    made[:] = np.arange(count).reshape(-1, *[1] * len(shape))
    return made


def good(**changes):
    made = {
        "x_train": images(6),
        "y_train": np.array([3, 5, 7, 3, 5, 7], np.uint8),
        "x_test": images(2),
        "y_test": np.array([[7], [3]]),
    }
    made.update(changes)
    return {name: x for name, x in made.items() if x is not None}


def write(tmp_path, arrays):
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    return f"npz:{tmp_path / 'a.npz'}"


def test_arrays_are_images_and_labels_name_themselves(tmp_path):
    made = sources.load(write(tmp_path, good(more=np.zeros(3))))
    assert (made.kind, made.input_shape) == ("image", (4, 4, 1))
    assert made.class_names == ("3", "5", "7") and made.num_classes == 3
    np.testing.assert_array_equal(made.train.inputs[..., 0], images(6))
    assert made.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert made.test.labels.tolist() == [2, 0]
    assert made.train.labels.dtype == np.int64


def test_labels_may_be_strings_or_have_names_in_order(tmp_path):
    labels = np.array(["dog", "cat"] * 3)
    made = sources.load(write(tmp_path, good(y_train=labels, y_test=labels[:2])))
    assert made.class_names == ("cat", "dog")
    assert made.train.labels.tolist() == [1, 0] * 3
    names = np.array(["dog", "cat"])
    arrays = good(y_train=np.array([1, 0] * 3), y_test=np.array([0, 1]))
    made = sources.load(write(tmp_path, arrays | {"class_names": names}))
    assert made.class_names == ("dog", "cat")
    assert made.train.labels.tolist() == [1, 0] * 3


def test_without_test_arrays_a_hash_of_the_index_decides(tmp_path):
    arrays = {"x_train": images(200, (2, 2, 3)), "y_train": np.arange(200) % 2}
    made = sources.load(write(tmp_path, arrays), validation_fraction=0.3)
    held = [i for i in range(200) if splitting.is_held_out(str(i), 0.3)]
    assert made.test.inputs[:, 0, 0, 0].tolist() == held and 40 < len(held) < 80
    assert made.test.labels.tolist() == [i % 2 for i in held]
    assert len(made.train) == 200 - len(held)


def test_images_are_resized(tmp_path):
    made = sources.load(write(tmp_path, good()), image_size=2, crop_pct=0.5)
    assert made.input_shape == (2, 2, 1) and made.train.inputs.shape == (6, 4, 4, 1)
    made = sources.load(write(tmp_path, good()), image_size=2)
    np.testing.assert_array_equal(
        made.test.inputs, resizing.resized(images(2)[..., np.newaxis], 2)
    )


REFUSED = {
    "another name": (
        {"X_train": images(2)},
        "may have x_test, y_test and class_names; it has x_train, y_train, x_test, "
        "y_test, X_train.",
    ),
    "no labels": ({"y_train": None}, "must have x_train and y_train"),
    "test images alone": ({"y_test": None}, "it has x_train, y_train, x_test."),
    "floats": (
        {"x_train": np.zeros((6, 4, 4), np.float32)},
        "x_train is float32 [6, 4, 4]; it must be images, uint8 [n, h, w] or [n, h,",
    ),
    "one image": (
        {"x_test": images(2)[0]},
        "x_test is uint8 [4, 4] and y_test int64 [2, 1]: there must be one label",
    ),
    "no image": ({"x_train": images(0)}, "x_train is uint8 [0, 4, 4]; it must be"),
    "lengths": (
        {"y_train": np.zeros(5, int)},
        "x_train is uint8 [6, 4, 4] and y_train int64 [5]: there must be one label",
    ),
    "shapes": (
        {"x_test": images(2, (4, 4, 3))},
        "x_train is uint8 [6, 4, 4] and x_test uint8 [2, 4, 4, 3]: examples must",
    ),
    "several labels": (
        {"y_train": np.zeros((6, 3), int)},
        "y_train is int64 [6, 3]; labels must be integers or strings, [n] or [n, 1].",
    ),
    "labels of floats": (
        {"y_train": np.zeros(6)},
        "y_train is float64 [6]; labels must be integers or strings",
    ),
    "a label without a name": (
        {"class_names": np.array(["a", "b"])},
        "y_train has labels from 3 to 7; they must be in [0, 2), the number of class",
    ),
    "texts as labels that have names": (
        {"y_train": np.array(["a", "b"] * 3), "class_names": np.array(["a", "b"])},
        "y_train has labels from a to b; they must be in [0, 2)",
    ),
    "texts without a model of texts": (
        {"x_train": np.array(["good", "bad"] * 3)},
        "x_train is <U4 [6], and texts need a --model of keras_hub.",
    ),
    "no text": (
        {"y_train": np.array(["a", "\ud800"] * 3)},
        "y_train holds what is no text: 'utf-8' codec can't encode",
    ),
    "rows beside images": (
        {"x_test": np.zeros((2, 4))},
        "x_train is uint8 [6, 4, 4] and x_test float64 [2, 4]: examples must",
    ),
    "a name that is a number": (
        {"class_names": np.array([1, 2])},
        "class_names is int64 [2]; names of classes must be strings",
    ),
    "one class": ({"y_train": np.zeros(6, int), "y_test": None, "x_test": None},
        "has the class '0' alone to train on"),
    "a class without training": (
        {"y_test": np.array([3, 9])},
        "1 bad example (class 9: no example to train on, but 1 to evaluate on); "
        "--skip_bad_examples",
    ),
    "a name without an example": (
        {"y_train": np.array([0, 1] * 3), "y_test": np.array([0, 1]),
         "class_names": np.array(["a", "b", "c"])},
        "1 bad example (class c: no example to train on); --skip_bad",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, name):
    changes, said = REFUSED[name]
    with pytest.raises(errors.DataError) as refused:
        sources.load(write(tmp_path, good(**changes)))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_classes_that_cannot_be_learned_are_left_out_if_asked(tmp_path):
    arrays = good(
        y_train=np.array([0, 2] * 3),
        y_test=np.array([2, 1]),
        class_names=np.array(["a", "b", "c"]),
    )
    made = sources.load(write(tmp_path, arrays), skip_bad_examples=True)
    assert made.class_names == ("a", "c")
    assert made.train.labels.tolist() == [0, 1] * 3
    assert made.test.labels.tolist() == [1]


def pickled():
    content = io.BytesIO()
    np.savez(content, **good(x_train=np.array([{}, []], object)))
    return content.getvalue()


def single():
    content = io.BytesIO()
    np.save(content, images(2))
    return content.getvalue()


def npz():
    content = io.BytesIO()
    np.savez(content, **good())
    return content.getvalue()


def cut():
    return npz()[:-40]


def garbled():
    content = io.BytesIO()
    np.savez_compressed(content, **good(x_train=GENERATOR.bytes(9)))
    made = bytearray(content.getvalue())
    made[60:80] = bytes(20)
    return bytes(made)


def of_another_version():
    content = bytearray(npz())
    place = content.index(b"PK\x01\x02") + 6  # which version is needed to extract it
    content[place : place + 2] = b"\xff\x00"
    return bytes(content)


@pytest.mark.parametrize(
    "content", [pickled, of_another_version, single, cut, garbled, lambda: b"text"]
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content())
    with pytest.raises(errors.DataError, match="cannot be read as a file") as refused:
        sources.load(f"npz:{tmp_path / 'a.npz'}")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_more_than_the_limit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_DECODED_BYTES", 200)
    with pytest.raises(errors.DataError, match="at most .* GiB fit"):
        sources.load(write(tmp_path, good()))


def rows():
    """Four rows of which the second has no number."""
    values = np.array([[0, 1], [np.nan, 2], [3, 4], [5, 7]], np.float32)
    return {"x_train": values, "y_train": np.array([0, 1, 0, 1])}


def test_rows_of_numbers_are_rows(tmp_path):
    test = {"x_test": np.array([[1, 2]]), "y_test": np.array([1])}
    path = write(tmp_path, rows() | test)
    with pytest.raises(errors.DataError, match=r"\(x_train\[1, 0\]: nan is no finite"):
        sources.load(path)
    made = sources.load(path, skip_bad_examples=True)
    assert (made.kind, made.input_shape) == ("row", (2,))
    assert made.train.inputs.tolist() == [[0, 1], [3, 4], [5, 7]]
    assert made.train.inputs.dtype == made.test.inputs.dtype == np.float64
    assert made.train.labels.tolist() == [0, 0, 1] and made.test.inputs.tolist() == [
        [1, 2]
    ]
    np.testing.assert_allclose(made.mean, [8 / 3, 4])


def test_a_bad_row_moves_no_other_to_the_other_side(tmp_path):
    values = np.arange(200.0).reshape(100, 2)
    values[::7] = np.inf
    path = write(tmp_path, {"x_train": values, "y_train": np.arange(100) % 2})
    made = sources.load(path, skip_bad_examples=True, validation_fraction=0.3)
    held = [i for i in range(100) if i % 7 and splitting.is_held_out(str(i), 0.3)]
    assert made.test.inputs[:, 0].tolist() == [2 * i for i in held]
    assert len(made.train) + len(held) == 100 - 15


def tokenize(texts):
    return np.array([[len(text), 0, 1] for text in texts], np.int32)


def test_texts_become_tokens(tmp_path):
    words = np.array(["a", "bb", "ccc"])
    arrays = {"x_train": words, "y_train": np.array([0, 1, 0])}
    arrays |= {"x_test": words[:1], "y_test": np.array([0])}
    made = sources.load(write(tmp_path, arrays), tokenize=tokenize)
    assert made.is_text and made.train.inputs[:, 0].tolist() == [1, 2, 3]
    with pytest.raises(
        errors.DataError, match=r"uint8 \[6, 4, 4\], and the model read"
    ):
        sources.load(write(tmp_path, good()), tokenize=tokenize)


def as_keras():
    return (images(4).tolist(), [0, 1, 0, 1]), (images(2), [1, 0])


def as_dict():
    train, test = as_keras()
    found = {"x_train": np.array(train[0], np.uint8), "y_train": train[1]}
    return found | {"x_test": test[0], "y_test": test[1], "class_names": ["a", "b"]}


def as_objects():
    words = np.array(["good film", "bad film"], object)
    return (words, [1, 0]), (words, [1, 0])


def fails():
    raise RuntimeError("no\ndisk")


def takes_arguments(folder):
    return folder


def returns_one():
    return images(3)


def returns_none():
    return None


def returns_what_is_no_array():
    return {"x_train": [[1], [2, 3]], "y_train": [0, 1]}


def module(name):
    return f"module:{__name__}:{name}"


def test_a_function_returns_arrays():
    made = sources.load(module("as_dict"))
    assert made.class_names == ("a", "b") and made.input_shape == (4, 4, 1)
    assert made.test.labels.tolist() == [1, 0]
    made = sources.load(module("as_objects"), tokenize=tokenize)
    assert made.train.inputs[:, 0].tolist() == [9, 8]


FUNCTIONS = {
    "as_keras": r"x_train is int64 \[4, 4, 4\]; it must be images, uint8",  # of lists
    "fails": "' raised: RuntimeError: no disk.",
    "takes_arguments": r"^`dataset` \('.*:takes_arguments'\) must take no arg",
    "returns_one": r"must return \(\(x_train, y_train\), .* it returned ndarray.",
    "returns_none": "it returned NoneType.",
    "returns_what_is_no_array": "x_train is no array: ",
    "absent": "cannot be found: module .* has no attribute 'absent'",
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_gives_no_data_is_refused_in_one_line(name):
    with pytest.raises(errors.DataError, match=FUNCTIONS[name]) as refused:
        sources.load(module(name))
    assert "\n" not in str(refused.value)
