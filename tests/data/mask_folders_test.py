"""Images and masks in two folders, and of TFDS."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from mp_loop.config import errors, sections
from mp_loop.data import batching, mask_folders, raw_examples, sources
from tests.support import data_sets, photos


def mask(*numbers, size=4):
    """A mask of columns."""
    rows = np.array(numbers, np.uint8).repeat(size // len(numbers))
    return np.tile(rows[:, np.newaxis], (size, 1, 1))


def folder(tmp_path, more=(), before=("train/", "test/")):
    files = {}
    for place in before:
        for i in range(8):
            files[f"{place}images/{i % 2}/{i}.png"] = 10 * i
            files[f"{place}masks/{i % 2}/{i}.png"] = mask(i % 2, 9)
    files |= dict(more)
    photos.write(tmp_path, {k: v for k, v in files.items() if v is not None})
    return f"folder:{tmp_path}"


def load(dataset, **settings):
    return sources.load(dataset, task="segmentation", **settings)


def test_images_have_the_masks_of_their_names(tmp_path):
    made = load(folder(tmp_path))
    assert made.class_names == ("0", "1", "9")
    for split in (made.train, made.test):
        assert split.inputs.shape == (8, 4, 4, 3) and split.labels.shape == (8, 4, 4)
        first = split.inputs[:, 0, 0, 0] // 10
        np.testing.assert_array_equal(split.labels[:, 0, 0], first % 2)
    numbers = [int(name[-5]) for name in made.test.names]  # test/images/0/4.png
    assert numbers == (made.test.inputs[:, 0, 0, 0] // 10).tolist()
    small = load(folder(tmp_path), image_size=2)
    np.testing.assert_array_equal(small.train.labels[0], [[0, 2], [0, 2]])


def test_some_are_held_out_by_their_names(tmp_path):
    made = load(folder(tmp_path, before=[""]), validation_fraction=0.4)
    more = {"images/new.png": 80, "masks/new.png": mask(0)}
    again = load(folder(tmp_path, more, before=[""]), validation_fraction=0.4)
    assert len(made.test) > 0 and len(again.train) + len(again.test) == 9
    held = {int(x) for x in made.test.inputs[:, 0, 0, 0]}
    assert held == {int(x) for x in again.test.inputs[:, 0, 0, 0]} - {80}


BAD = {
    "no mask": (
        {"train/images/new.png": 1},
        r"train/images/new\.png: there is no train/masks/new\.png",
    ),
    "no image": (
        {"train/masks/new.png": mask(0)},
        r"train/masks/new\.png: there is no image of this name",
    ),
    "two images": (
        {"train/images/0/0.jpg": 1},
        r"train/images/0/0\.png: another image has this name",
    ),
    "another size": (
        {"train/masks/0/0.png": mask(0, size=6)},
        r"train/masks/0/0\.png: is \(6, 6\), and its image \(4, 4\)",
    ),
    "colors": ({"train/masks/0/0.png": 3}, r"train/masks/0/0\.png: A mask must be"),
    "no image at all": (
        {"test/images/0/0.png": b"?"},
        r"test/images/0/0\.png: ",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_has_no_partner_is_bad(tmp_path, name):
    more, said = BAD[name]
    path = folder(tmp_path, more)
    with pytest.raises(errors.DataError, match=said) as error:
        load(path)
    assert "\n" not in str(error.value)
    made = load(path, skip_bad_examples=True)
    assert len(made.train) + len(made.test) in (15, 16)


REFUSED = {
    "classes": ({}, ["cat/"], "must hold the folders images and masks"),
    "unequal": (
        {"train/images/a.png": photos.flat(1, 6), "train/masks/a.png": mask(1, size=6)},
        ["train/"],
        "images of unequal size",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_folders_are_refused(tmp_path, name):
    more, before, said = REFUSED[name]
    with pytest.raises(errors.DataError, match=said):
        load(folder(tmp_path, more, before))


def with_sizes(tmp_path, numbers=(0, 9)):
    """Images and masks of 6 x 8 pixels, a class for each column or row."""
    draw = np.random.default_rng(0).integers
    files = {}
    for i in range(12):
        files[f"images/{i}.png"] = draw(0, 256, (6, 8, 3), np.uint8)
        files[f"masks/{i}.png"] = np.array(numbers, np.uint8)[draw(0, 2, (6, 8, 1))]
    photos.write(tmp_path, files)
    return f"folder:{tmp_path}"


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 5, "crop_pct": 0.8},
        {"image_size": 5, "ignore_label": 9},
        {},
        {"numbers": (0, 1)},
    ],
)
def test_images_and_masks_beyond_the_limit_are_read_as_they_are_needed(
    tmp_path, settings
):
    settings = {"validation_fraction": 0.4} | settings
    dataset = with_sizes(tmp_path, settings.pop("numbers", (0, 9)))
    if "ignore_label" in settings:
        photos.write(tmp_path, {"masks/0.png": np.full((6, 8, 1), 3, np.uint8)})
    held = load(dataset, **settings)
    needed = load(dataset, **settings, max_data_gib=1e-9)
    for split in ("train", "test"):
        one, other = getattr(held, split), getattr(needed, split)
        assert one.not_held is one.labels_not_held is None
        assert other.not_held is not None and other.labels_not_held is not None
        assert one.names == other.names and one.checksums == other.checksums
    assert held.masks == needed.masks and held.class_names == needed.class_names
    np.testing.assert_array_equal(held.class_counts(), needed.class_counts())
    for make in (
        lambda source: batching.training_batches(source, 3, 1, 0, augment="flip_shift"),
        lambda source: batching.evaluation_batches(source, 2),
    ):
        for one, other in zip(make(held), make(needed), strict=True):
            assert len(one) == len(other) in (2, 3)
            for x, y in zip(one, other, strict=True):
                np.testing.assert_array_equal(x, y)


def test_a_mask_that_is_gone_is_named_where_it_is_needed(tmp_path):
    made = load(with_sizes(tmp_path), max_data_gib=1e-9)
    for name in made.train.labels.files:
        (tmp_path / name).unlink()
    with pytest.raises(tf.errors.OpError) as error:
        list(batching.training_batches(made, 2, 0, 0))
    said = batching.why_unreadable(error.value)
    assert said.startswith("masks/") and "No such file" in said, error.value


def test_images_to_predict_on_have_masks_where_the_folder_has(tmp_path):
    wanted = raw_examples.Wanted(
        (4, 4, 3), 0, ("0", "1", "9"), task="segmentation", mask_values=(0, 1, 9)
    )
    data = sections.Data(dataset=folder(tmp_path, {"test/masks/1/1.png": b"?"}))
    found = list(raw_examples.read(data, wanted, split="test"))
    assert [x.name for x in found][:2] == ["test/images/0/0.png", "test/images/0/2.png"]
    bad = [x for x in found if x.problem]
    assert len(found) == 8 and [x.name for x in bad] == ["test/images/1/1.png"]
    np.testing.assert_array_equal(found[0].label, mask(0, 9)[..., 0])
    assert len(list(raw_examples.read(data, wanted, split=""))) == 16
    alone = sections.Data(dataset=f"{data.dataset}/test/images")
    found = list(raw_examples.read(alone, wanted, split=""))
    assert len(found) == 8 and found[0].label is None
    assert mask_folders.is_one(tmp_path / "test")


MASK = tfds.features.Image(shape=(None, None, 1), encoding_format="png")


def of_tfds(tmp_path, label):
    rows = [{"image": photos.flat(i, 4), "label": label} for i in range(3)]
    data_sets.write(tmp_path, data_sets.ANY_IMAGE, MASK, rows)
    return {"dataset": "made", "data_dir": str(tmp_path)}


def test_a_data_set_of_tfds_has_masks(tmp_path):
    given = of_tfds(tmp_path, mask(1, 2, 2, 3))
    made = load(**given)
    assert made.class_names == ("1", "2", "3") and made.train.labels.shape == (3, 4, 4)
    np.testing.assert_array_equal(made.test.labels[0, 0], [0, 1, 1, 2])
    small = load(**given, image_size=3, ignore_label=1)
    np.testing.assert_array_equal(small.train.labels[0], [[255, 0, 1]] * 3)
    wanted = raw_examples.Wanted(
        (3, 3, 3), 3, ("2", "3"), task="segmentation", mask_values=(2, 3)
    )
    data = sections.Data(**given)
    *_, found = raw_examples.read(data, wanted, split="test")
    assert found.name == 2 and found.label.tolist() == [[1, 2, 3]] * 3
    np.testing.assert_array_equal(found.inputs, small.test.inputs[2])


def test_a_data_set_without_masks_is_refused(tmp_path):
    with pytest.raises(errors.DataError, match="must have an 8-bit Image and one of a"):
        load("fashion_mnist_mini")
    with pytest.raises(errors.DataError, match=r"mask 0 is \(6, 6\), and its image"):
        load(**of_tfds(tmp_path, mask(1, 2, size=6)))
