"""Images in a folder for each class."""

import logging

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.config import errors
from mp_loop.data import batching, file_images, resizing, sources
from tests.support import photos

SPLIT = {
    "train/cat/1.png": 10,
    "train/cat/2.jpg": photos.flat(20, channels=1),
    "train/dog/1.png": 30,
    "test/dog/1.png": photos.flat(40, channels=4),
}


def load(folder, **settings):
    return sources.load(f"folder:{folder}", **settings)


def values(split):
    return split.inputs[:, 0, 0, 0].tolist(), split.labels.tolist()


@pytest.mark.parametrize("test", ["test", "validation", "val", "Test"])
def test_a_folder_with_splits_is_read_by_name(tmp_path, test):
    files = {name.replace("test/", f"{test}/"): x for name, x in SPLIT.items()}
    made = load(
        photos.write(tmp_path, files | {"LICENSE.txt": b"", "train/a.csv": b""})
    )
    assert made.class_names == ("cat", "dog") and made.num_classes == 2
    assert made.input_shape == (4, 4, 3) and made.kind == "image"
    assert values(made.train) == ([10, 20, 30], [0, 0, 1])
    assert values(made.test) == ([40], [1])
    assert made.train.inputs.dtype == np.uint8
    np.testing.assert_allclose(made.mean * 255, [20] * 3)
    (inputs, labels), *_ = batching.training_batches(made, 3, 0, 0)
    assert inputs.shape == (3, 4, 4, 3) and sorted(labels.numpy()) == [0, 0, 1]


@pytest.mark.parametrize("before", ["", "train/"])
def test_without_a_test_folder_a_hash_decides_and_a_new_image_moves_no_other(
    tmp_path, before
):
    def write_and_load(numbers):
        """Images in two classes, filled with their numbers."""
        files = {f"{before}{'ab'[i % 2]}/{i:03}.png": i for i in numbers}
        photos.write(tmp_path, files)
        made = load(tmp_path, validation_fraction=0.3)
        return set(values(made.train)[0]), set(values(made.test)[0])

    train, test = write_and_load(range(40, 100))
    assert train | test == {*range(40, 100)} and 6 <= len(test) <= 30
    # New ones are before, between and behind the others in their folders.
    more_train, more_test = write_and_load([*range(0, 40), *range(100, 120)])
    assert train < more_train and test < more_test


def test_images_of_any_size_are_resized_as_those_of_tfds(tmp_path):
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200  # the square in the middle
    photos.write(tmp_path, SPLIT | {"train/dog/2.png": wide})
    with pytest.raises(errors.DataError) as refused:
        load(tmp_path)
    assert str(refused.value) == (
        f"Data set 'folder:{tmp_path}' has images of unequal size: (4, 4, 3) and "
        "(4, 8, 3) ('train/dog/2.png'); --image_size makes them equal."
    )
    made = load(tmp_path, image_size=2, crop_pct=0.5)
    assert made.input_shape == (2, 2, 3) and made.train.inputs.shape == (4, 4, 4, 3)
    assert np.all(made.train.inputs[3] == 200)
    np.testing.assert_array_equal(
        made.train.inputs[3:], resizing.resized(wide[None], 4)
    )


# What is wrong, besides SPLIT; what is said of it; and what is left with
# --skip_bad_examples: the values of the training and of the test images.
BAD = {
    "an unreadable image": (
        {"train/dog/0.jpg": b"oh"},
        "1 bad example (train/dog/0.jpg: Unknown image file format",
        ([10, 20, 30], [40]),
    ),
    "an unreadable image that is to evaluate on": (
        {"test/cat/0.jpg": b""},
        "1 bad example (test/cat/0.jpg: Input is empty)",
        ([10, 20, 30], [40]),
    ),
    "an empty class": (
        {"train/fox/notes.txt": b""},
        "1 bad example (train/fox: holds no image)",
        ([10, 20, 30], [40]),
    ),
    "a class without training images": (
        {"test/fox/1.png": 50},
        "(class fox: no example to train on, but 1 to evaluate on)",
        ([10, 20, 30], [40]),
    ),
    "a class without readable training images": (
        {"train/a/1.png": b"", "test/a/1.png": 9},
        "2 bad examples (train/a/1.png: Input is empty; class a: no example to",
        ([10, 20, 30], [40]),
    ),
    "an image in no class": (
        {"train/1.png": 60},
        "1 bad example (train/1.png: is in no class's folder)",
        ([10, 20, 30], [40]),
    ),
    "a folder in a class": (
        {"train/cat/more/1.png": 60},
        "1 bad example (train/cat/more: is a folder in that of a class)",
        ([10, 20, 30], [40]),
    ),
    "many": (
        {f"train/cat/{i}.png": b"" for i in range(3, 9)},
        "6 bad examples (train/cat/3.png: Input is empty; train/cat/4.png: Input is "
        "empty; train/cat/5.png: Input is empty; and 3 more); --skip_bad_examples",
        ([10, 20, 30], [40]),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_bad_is_named_or_left_out(tmp_path, caplog, name):
    files, said, left = BAD[name]
    photos.write(tmp_path, SPLIT | files)
    with pytest.raises(errors.DataError) as refused:
        load(tmp_path)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        made = load(tmp_path, skip_bad_examples=True)
    assert made.class_names == ("cat", "dog")
    assert (values(made.train)[0], values(made.test)[0]) == left
    # The names are those of what is left; all images to evaluate on are dogs.
    assert [name.split("/")[1] for name in made.test.names] == ["dog"] * len(made.test)
    (record,) = caplog.records
    assert "(left out: " in record.getMessage()


def test_a_class_whose_name_is_no_text_is_named(tmp_path):
    photos.write(tmp_path, SPLIT | {"train/\udcff/1.png": 50})
    with pytest.raises(
        errors.DataError, match="train/\ufffd: the name of a class must"
    ):
        load(tmp_path)
    assert load(tmp_path, skip_bad_examples=True).class_names == ("cat", "dog")


USELESS = {
    "no image": ({"cat/1.txt": b"", "dog/1.txt": b""}, "has no example to train on"),
    "splits without classes": (
        {"train/cat.0.jpg": 1, "train/dog.0.jpg": 2, "test/1.jpg": 3, "test/2.jpg": 4},
        "'test' must hold a folder for each class, in PATH/train; it would be taken",
    ),
    "nothing to train on": (
        {"test/cat/1.jpg": 1, "test/dog/1.jpg": 2},
        "'test' must hold a folder for each class, in PATH/train",
    ),
    "one class": ({"cat/1.png": 1, "cat/2.png": 2}, "has the class 'cat' alone to"),
    "no readable image": (
        {"train/cat/1.png": b"", "train/dog/1.png": b"", "test/cat/1.png": 1},
        "has no example to train on",
    ),
    "nothing to evaluate on": (
        {"cat/1.png": 1, "dog/1.png": 1},
        "has no example to evaluate on, of 2; --validation_fraction (0.001) can be",
    ),
}


@pytest.mark.parametrize("name", USELESS)
def test_what_cannot_be_learned_from_is_refused(tmp_path, name):
    files, said = USELESS[name]
    photos.write(tmp_path, files)
    with pytest.raises(errors.DataError) as refused:
        load(tmp_path, skip_bad_examples=True, validation_fraction=0.001)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_what_is_beyond_the_limit_is_read_as_it_is_needed(tmp_path, caplog):
    photos.write(tmp_path, SPLIT)
    size = 4 * 4 * 4 * 3  # of both splits
    held = load(tmp_path, max_data_gib=size / 2**30)
    assert isinstance(held.train.inputs, np.ndarray) and not caplog.records
    needed = load(tmp_path, max_data_gib=(size - 1) / 2**30)
    assert isinstance(needed.train.inputs, file_images.FileImages)
    assert isinstance(needed.test.inputs, file_images.FileImages)
    (record,) = caplog.records
    assert "read as they are needed" in record.getMessage()
    assert needed.mean.tobytes() == held.mean.tobytes()
    assert needed.std.tobytes() == held.std.tobytes()
    for mine, other in ((needed.train, held.train), (needed.test, held.test)):
        assert mine.inputs.shape == other.inputs.shape
        np.testing.assert_array_equal(mine.labels, other.labels)
        assert mine.checksums == other.checksums


@pytest.mark.parametrize("augment", ["none", "flip_shift", "flip_crop"])
def test_batches_are_the_same_bits_wherever_the_images_are(tmp_path, augment):
    """Bad files and classes without training images are left out of both."""
    mini = sources.load("fashion_mnist_mini")
    photos.of_source(tmp_path, mini, train=6, test=3)
    photos.write(tmp_path, {"train/Bag/0.jpg": b"bad", "test/new/1.png": 7})
    settings = {"image_size": 20, "crop_pct": 0.8, "skip_bad_examples": True}
    found = [load(tmp_path, **settings, max_data_gib=limit) for limit in (4.0, 1e-9)]
    assert len(found[0].train) == len(found[1].train) == 60
    for make in (
        lambda x: batching.training_batches(x, 16, seed=3, epoch=1, augment=augment),
        lambda x: batching.evaluation_batches(x, 16),
    ):
        for one, other in zip(*map(make, found), strict=True):
            assert [x.numpy().tobytes() for x in one] == [
                x.numpy().tobytes() for x in other
            ]


def test_a_file_that_is_gone_is_an_error_that_names_it(tmp_path):
    photos.write(tmp_path, SPLIT)
    source = load(tmp_path, max_data_gib=1e-9)
    path = tmp_path / source.test.inputs.files[0]
    path.unlink()
    with pytest.raises(tf.errors.NotFoundError) as raised:
        list(batching.evaluation_batches(source, 1))
    said = batching.why_unreadable(raised.value)
    assert said == f"{path}; No such file or directory"
