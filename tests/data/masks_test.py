"""Masks: classes of pixels, as arrays."""

import logging

import numpy as np
import pytest
import tensorflow as tf

from mp_loop.config import errors
from mp_loop.data import batching, masks, recipes, resizing, sources


def load(dataset, **settings):
    return sources.load(dataset, task="segmentation", **settings)


def npz(folder, **changes):
    """Images whose pixels are their masks, but for the class 255, in columns."""
    numbers = np.tile(np.array([0, 7, 255, 7], np.uint8), (6, 4, 1))
    numbers[3:, 0] = 0
    made = {
        "x_train": np.repeat(numbers[..., np.newaxis], 3, -1),
        "y_train": numbers.astype(np.int64),
        "x_test": np.zeros((2, 4, 4, 3), np.uint8),
        "y_test": numbers[:2, ..., np.newaxis],
    }
    made |= changes
    np.savez(folder / "a.npz", **{k: v for k, v in made.items() if v is not None})
    return f"npz:{folder / 'a.npz'}"


def test_the_classes_are_the_numbers_that_there_are(tmp_path):
    made = load(npz(tmp_path))
    assert made.class_names == ("0", "7", "255") and made.num_classes == 3
    assert made.masks == masks.Masks((0, 7, 255), (1.0, 1.0))
    assert made.train.labels.dtype == np.uint8
    np.testing.assert_array_equal(made.train.labels[0, 0], [0, 1, 2, 1])
    numbers = made.masks.numbers(made.train.labels)
    np.testing.assert_array_equal(numbers, made.train.inputs[..., 0])
    (_, labels), *_ = batching.training_batches(made, 6, seed=0, epoch=0)
    assert labels.dtype == tf.int32 and labels.shape == (6, 4, 4)
    assert (
        made.class_counts().tolist() == np.bincount(made.train.labels.ravel()).tolist()
    )


def test_what_is_ignored_does_not_count(tmp_path):
    made = load(npz(tmp_path), ignore_label=255)
    assert made.class_names == ("0", "7") and made.masks.values == (0, 7)
    ignored = made.train.labels == masks.IGNORED
    np.testing.assert_array_equal(ignored, made.train.inputs[..., 0] == 255)
    for batches in (
        batching.training_batches(made, 6, seed=0, epoch=0),
        batching.evaluation_batches(made, 2),
    ):
        (inputs, labels, weights), *_ = batches
        assert labels.numpy().max() == 1
        # The mean of weight * loss is that of the pixels that count.
        assert weights.numpy().mean() == pytest.approx(1)
    counted = weights.numpy() != 0
    np.testing.assert_array_equal(counted, made.test.labels != masks.IGNORED)


def test_a_middle_is_that_of_image_and_mask(tmp_path):
    made = load(npz(tmp_path), image_size=2, crop_pct=0.5, ignore_label=7)
    assert made.input_shape == (2, 2, 3) and made.train.labels.shape == (6, 4, 4)
    _, labels, weights = next(iter(batching.evaluation_batches(made, 2)))
    np.testing.assert_array_equal(weights[0], [[0, 2], [0, 2]])  # 7 and 255
    np.testing.assert_array_equal(labels[0], [[0, 1], [0, 1]])


@pytest.mark.parametrize("size", [3, 4, 8])
def test_a_mask_is_resized_as_its_image_is(size):
    mask = np.zeros((1, 6, 4), np.uint8)
    mask[:, 1:3, :2] = 200  # the upper left quarter of the square in the middle
    found = masks.resized(mask, size)
    image = resizing.resized(mask[..., np.newaxis], size)[..., 0]
    assert set(np.unique(found)) == {0, 200}
    sure = (image == 0) | (image == 200)
    np.testing.assert_array_equal(found[sure], image[sure])
    assert sure.any()


@pytest.mark.parametrize("augment", ["flip_shift", "flip_crop"])
def test_a_mask_moves_with_its_image(tmp_path, augment):
    generator = np.random.default_rng(0)
    numbers = generator.integers(1, 3, (40, 2, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    arrays = {"x_train": numbers * 100, "y_train": numbers, "x_test": None}
    made = load(npz(tmp_path, **arrays, y_test=None))
    count = len(made.train)
    batches = batching.training_batches(
        made, count, 0, 0, augment=recipes.Recipe(augment), raw=True
    )
    ((images, labels, *weights),) = batches
    images = images.numpy()[..., 0].astype(int)
    whole = images % 100 == 0  # not between two pixels
    assert 0.5 < whole.mean() <= 1
    if augment == "flip_crop":
        assert not weights
        np.testing.assert_array_equal(labels[whole] + 1, images[whole] // 100)
        return
    counts = weights[0].numpy() != 0
    np.testing.assert_array_equal(counts, images > 0)  # black moved in
    assert 0 < counts.mean() < 1
    np.testing.assert_array_equal(labels.numpy()[counts] + 1, images[counts] // 100)


def test_a_class_that_there_is_nothing_to_learn_of_is_bad(tmp_path, caplog):
    test = np.full((2, 4, 4), 9)
    said = "class 9: no pixel to train on, but 32 to evaluate on"
    with pytest.raises(errors.DataError, match=said):
        load(npz(tmp_path, y_test=test))
    test[0, 0, 0] = 7
    path = npz(tmp_path, y_test=test)
    with caplog.at_level(logging.WARNING):
        made = load(path, skip_bad_examples=True)
    assert "class 9" in caplog.text and made.class_names == ("0", "7", "255")
    assert np.sum(made.test.labels != masks.IGNORED) == 1
    assert made.masks.weights == (1.0, 32.0)


NAMES = np.array(["sky", "sea"])
ONLY_TWO = np.tile([0, 1], (6, 4, 2))


def test_numbers_have_names(tmp_path):
    arrays = {"y_train": ONLY_TWO, "y_test": ONLY_TWO[:2], "class_names": NAMES}
    made = load(npz(tmp_path, **arrays))
    assert made.class_names == ("sky", "sea") and made.masks.values == (0, 1)


BAD = {
    "one label": (
        {"y_train": np.arange(6)},
        r"y_train is int64 \[6\]; labels of --task=segmentation must be integers, "
        r"\[n, h, w\]",
    ),
    "another size": (
        {"y_train": np.zeros((6, 4, 3), int)},
        r"x_train is uint8 \[6, 4, 4, 3\] and y_train int64 \[6, 4, 3\]: a mask must",
    ),
    "large numbers": (
        {"y_train": ONLY_TWO * 300},
        r"y_train has numbers from 0 to 300; those of classes must be in \[0, 255\]",
    ),
    "negative numbers": ({"y_train": -ONLY_TWO}, "numbers from -1 to 0"),
    "rows": (
        {"x_train": np.ones((6, 3))},
        r"x_train is float64 \[6, 3\]; --task=segmentation needs images",
    ),
    "no names": (
        {"class_names": NAMES},
        r"masks with the number 255; with class_names they must be in \[0, 2\)",
    ),
    "nothing that counts": (
        {"y_test": np.full((2, 4, 4), 9), "skip_bad_examples": True},
        "no pixel of a class to evaluate on",
    ),
    "one class": (
        {"y_train": ONLY_TWO * 0, "y_test": ONLY_TWO[:2] * 0},
        "masks of 1 class\\(es\\) to train on",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_arrays_that_hold_no_masks_are_refused(tmp_path, name):
    changes, said = dict(BAD[name][0]), BAD[name][1]
    settings = {"skip_bad_examples": changes.pop("skip_bad_examples", False)}
    with pytest.raises(errors.DataError, match=said) as error:
        load(npz(tmp_path, **changes), **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dataset", ["csv:a.csv", "jsonl:a.jsonl"])
def test_data_without_images_have_no_masks(dataset):
    with pytest.raises(errors.UsageError, match="has no masks"):
        load(dataset)


def test_what_masks_cannot_follow_is_refused(tmp_path):
    made = load(npz(tmp_path))
    for recipe, said in (
        (recipes.Recipe(rand_augment=9), "would move images from their masks"),
        (recipes.Recipe(mixup=0.2), "are for one class per image"),
    ):
        with pytest.raises(errors.DataError, match=said):
            batching.training_batches(made, 2, 0, 0, augment=recipe)
