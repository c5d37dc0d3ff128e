"""Which data sets are read, and which are refused."""

import dataclasses
import hashlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from mp_loop.config import errors
from mp_loop.data import batching, sources
from tests.support import data_sets

# Of the decoded images and labels: record files differ between machines.
MINI_SHA256 = {
    "train": "0e82557b0b1071b411805c17352fa8fd29b4fafd87f7c2235204b70795b93070",
    "test": "2b19bc9e3a0053ee0f779269f471ea8b5e770c0e17759bcb237c9abc37dea9cb",
}


@pytest.mark.parametrize(("split", "per_class"), [("train", 600), ("test", 100)])
def test_embedded_data_are_balanced_and_pinned(mini, split, per_class):
    examples = getattr(mini, split)
    assert examples.inputs.dtype == np.uint8
    assert examples.labels.dtype == np.int64
    assert examples.inputs.shape == (10 * per_class, 28, 28, 1)
    assert np.bincount(examples.labels).tolist() == [per_class] * 10
    content = examples.inputs.tobytes() + examples.labels.tobytes()
    assert hashlib.sha256(content).hexdigest() == MINI_SHA256[split]


def test_embedded_data_keep_names_licence_and_no_machine_path(mini):
    assert mini.name == "fashion_mnist_mini"
    assert mini.num_classes == 10
    assert mini.input_shape == (28, 28, 1)
    assert mini.class_names[0] == "T-shirt/top"
    assert mini.class_names[9] == "Ankle boot"
    folder = data_sets.embedded_folder()
    assert "Copyright (c) 2017 Zalando SE" in (folder / "LICENSE").read_text()
    for file in folder.glob("*.json"):
        assert '"/' not in file.read_text()


def test_mean_and_std_are_those_of_the_training_pixels(mini):
    pixels = mini.train.inputs.astype(np.float64) / 255
    # Summing 4.7 million float64 in another order: some 1e-13 relative.
    np.testing.assert_allclose(mini.mean, [pixels.mean()], rtol=1e-12)
    np.testing.assert_allclose(mini.std, [pixels.std()], rtol=1e-12)


@pytest.mark.parametrize("test_split", ["test", "validation"])
@pytest.mark.parametrize(
    "image", [data_sets.IMAGE, data_sets.ANY_IMAGE], ids=["fixed", "any_size"]
)
def test_a_folder_without_builder_code_is_read(tmp_path, image, test_split):
    # TFDS's default is to read files in turns, 16 examples from each.
    examples = data_sets.pictures(*[4] * 45)
    data_sets.write(
        tmp_path, image, data_sets.LABEL, examples, ("train", test_split), per_file=20
    )
    made = sources.load("made", str(tmp_path))
    assert made.input_shape == (4, 4, 3)
    assert made.class_names == ("cat", "dog")
    for split in (made.train, made.test):
        assert split.inputs[:, 0, 0, 0].tolist() == list(range(45))
        assert split.labels.tolist() == [i % 2 for i in range(45)]


def text(tmp_path):
    data_sets.write(
        tmp_path, tfds.features.Text(), data_sets.LABEL, [{"image": "a", "label": 0}]
    )


def deep(tmp_path):
    image = np.zeros((4, 4, 3), np.uint16)
    data_sets.write(
        tmp_path, data_sets.DEEP_IMAGE, data_sets.LABEL, [{"image": image, "label": 0}]
    )


def unequal(tmp_path):
    data_sets.write(
        tmp_path, data_sets.ANY_IMAGE, data_sets.LABEL, data_sets.pictures(4, 4, 5)
    )


def unequal_splits(tmp_path):
    data_sets.write(
        tmp_path,
        data_sets.ANY_IMAGE,
        data_sets.LABEL,
        {"train": data_sets.pictures(4, 4), "test": data_sets.pictures(5, 5)},
    )


def no_labels(tmp_path):
    examples = [dict(example, label=-1) for example in data_sets.pictures(4, 4)]
    data_sets.write(tmp_path, data_sets.IMAGE, data_sets.LABEL, examples)


def no_test(tmp_path):
    data_sets.write(
        tmp_path,
        data_sets.IMAGE,
        data_sets.LABEL,
        data_sets.pictures(4),
        ("train", "other"),
    )


def cut(tmp_path):
    folder = data_sets.write(
        tmp_path, data_sets.IMAGE, data_sets.LABEL, data_sets.pictures(4, 4, 4)
    )
    file = next(folder.glob("*train*0"))
    file.write_bytes(file.read_bytes()[:-7])


def garbled(tmp_path):
    folder = data_sets.write(
        tmp_path, data_sets.IMAGE, data_sets.LABEL, data_sets.pictures(4, 4, 4)
    )
    file = next(folder.glob("*test*0"))
    content = bytearray(file.read_bytes())
    content[40] ^= 255
    file.write_bytes(content)


def lost_file(tmp_path):
    next(
        data_sets.write(
            tmp_path, data_sets.IMAGE, data_sets.LABEL, data_sets.pictures(4)
        ).glob("*train*0")
    ).unlink()


def bad_json(tmp_path):
    folder = data_sets.write(
        tmp_path, data_sets.IMAGE, data_sets.LABEL, data_sets.pictures(4)
    )
    (folder / "dataset_info.json").write_text("{")


def declare(number):
    def prepare(tmp_path):
        folder = data_sets.write(
            tmp_path, data_sets.IMAGE, data_sets.LABEL, data_sets.pictures(4, 4)
        )
        info = folder / "dataset_info.json"
        assert '"2"' in info.read_text()
        info.write_text(info.read_text().replace('"2"', f'"{number}"'))

    return prepare


@pytest.mark.parametrize(
    ("prepare", "law"),
    [
        (text, "must have an 8-bit Image and a ClassLabel"),
        (deep, "must have an 8-bit Image and a ClassLabel"),
        (unequal, "images of unequal size"),
        (unequal_splits, r"images of unequal size: \(4, 4, 3\) and \(5, 5, 3\)"),
        (no_labels, r"labels from -1 to -1; they must be in \[0, 2\)"),
        (no_test, "'test' or 'validation'"),
        (cut, "split 'train', cannot be read"),
        (garbled, "split 'test', cannot be read"),
        (lost_file, "split 'train', cannot be read"),
        (bad_json, "cannot be opened"),
        (declare(5), "split 'train', cannot be read"),
        (declare(1), "split 'train', cannot be read"),
        (lambda folder: None, "neither in .* nor known to TFDS.*--data_dir"),
    ],
)
def test_unusable_data_are_refused_in_one_line(tmp_path, prepare, law):
    prepare(tmp_path)
    with pytest.raises(errors.DataError, match=law) as error:
        sources.load("made", str(tmp_path))
    assert "made" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_images_are_cut_to_squares_and_resized(tmp_path):
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200  # the square in the middle
    tall = np.full((12, 6, 3), 50, np.uint8)
    examples = [{"image": image, "label": 0} for image in (wide, tall, wide[:, :4])]
    data_sets.write(tmp_path, data_sets.ANY_IMAGE, data_sets.LABEL, examples)
    made = sources.load("made", str(tmp_path), image_size=4)
    assert made.input_shape == (4, 4, 3) and made.train.inputs.dtype == np.uint8
    assert [sorted(set(image.ravel())) for image in made.train.inputs] == [
        [200],
        [50],
        [0, 200],
    ]
    smaller = sources.load("made", str(tmp_path), image_size=2)
    assert smaller.test.inputs[0].ravel().tolist() == [200] * 12


def test_models_get_the_middle_of_an_image_or_parts_of_the_whole(tmp_path):
    frame = np.full((8, 8, 3), 255, np.uint8)
    frame[2:6, 2:6] = 0
    examples = [{"image": frame, "label": 0}] * 4
    data_sets.write(tmp_path, data_sets.ANY_IMAGE, data_sets.LABEL, examples)
    made = sources.load("made", str(tmp_path), image_size=4, crop_pct=0.5)
    assert made.input_shape == (4, 4, 3) and made.train.inputs.shape == (4, 8, 8, 3)
    made = dataclasses.replace(made, preprocess=lambda pixels: pixels)
    for batches_ in (
        batching.training_batches(made, 4, 0, 0),
        batching.evaluation_batches(made, 4),
    ):
        (x, _), *_ = batches_
        np.testing.assert_array_equal(x, np.zeros((4, 4, 4, 3)))
    (x, _), *_ = batching.training_batches(made, 4, 0, 0, augment="flip_crop")
    assert x.shape == (4, 4, 4, 3) and np.all(np.max(x, (1, 2, 3)) > 0)


SENTENCES = [
    {"sentence": text, "label": len(text) % 2}
    for text in ("one", "two three", "", "fünf sechs sieben")
]


def tokenize(texts):
    """The lengths of the words."""
    rows = [[len(word) for word in text.decode().split()] for text in texts]
    return np.array([(row + [0] * 3)[:3] for row in rows], np.int32)


def test_texts_become_tokens_of_the_stored_order(tmp_path):
    data_sets.write(
        tmp_path, tfds.features.Text(), data_sets.LABEL, SENTENCES, key="sentence"
    )
    made = sources.load("made", str(tmp_path), tokenize=tokenize)
    assert made.is_text and made.input_shape == (3,)
    assert made.train.inputs.tolist() == [[3, 0, 0], [3, 5, 0], [0, 0, 0], [4, 5, 6]]
    assert made.test.labels.tolist() == [1, 1, 0, 1]
    (x, y), *_ = batching.training_batches(made, 4, 0, 0)
    assert x.dtype == tf.int32 and sorted(y.numpy()) == [0, 1, 1, 1]
    with pytest.raises(errors.DataError, match=r"`augment` \('flip_shift'\) is for im"):
        batching.training_batches(made, 4, 0, 0, augment="flip_shift")
    with pytest.raises(errors.DataError, match="texts need a --model of keras_hub"):
        sources.load("made", str(tmp_path))


def test_source_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        data_sets.source(4).num_classes = 3
