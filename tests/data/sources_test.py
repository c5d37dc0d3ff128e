"""Data: what is read, in which order, and what is refused."""

import dataclasses
import hashlib
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from mp_loop.config import choices
from mp_loop.data import sources
from mp_loop.datasets import make_fashion_mnist_mini

# Of the decoded images and labels: record files differ between machines.
MINI_SHA256 = {
    "train": "0e82557b0b1071b411805c17352fa8fd29b4fafd87f7c2235204b70795b93070",
    "test": "2b19bc9e3a0053ee0f779269f471ea8b5e770c0e17759bcb237c9abc37dea9cb",
}


@pytest.fixture(scope="module")
def mini():
    return sources.load("fashion_mnist_mini")


def source(count, shape=(6, 5, 1), test_count=3):
    """Example i is filled with pixels that name it: [0, 0] is i."""
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    split = sources.Split(images, np.arange(count))
    return sources.Source(
        name="made",
        train=split,
        test=sources.Split(images[:test_count], np.arange(test_count)),
        num_classes=count,
        input_shape=shape,
        class_names=tuple(map(str, range(count))),
        # Normalization is then the identity, exactly.
        mean=np.zeros(shape[-1]),
        std=np.full(shape[-1], 1 / 255),
    )


def batches(dataset):
    return [(x.numpy(), y.numpy()) for x, y in dataset]


def labels(dataset):
    return [y.numpy().tolist() for _, y in dataset]


def assert_same(got, wanted):
    assert len(got) == len(wanted)
    for (x, y), (wanted_x, wanted_y) in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(x, wanted_x)
        np.testing.assert_array_equal(y, wanted_y)


# The embedded data set.


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
    folder = embedded_folder()
    assert "Copyright (c) 2017 Zalando SE" in (folder / "LICENSE").read_text()
    for file in folder.glob("*.json"):
        assert '"/' not in file.read_text()


def test_mean_and_std_are_those_of_the_training_pixels(mini):
    pixels = mini.train.inputs.astype(np.float64) / 255
    # Summing 4.7 million float64 in another order: some 1e-13 relative.
    np.testing.assert_allclose(mini.mean, [pixels.mean()], rtol=1e-12)
    np.testing.assert_allclose(mini.std, [pixels.std()], rtol=1e-12)


def test_moments_are_per_channel_and_a_constant_channel_is_left_alone():
    images = np.zeros((2, 1, 2, 3), np.uint8)
    images[0, :, :, 0] = 255
    images[..., 1] = 51
    images[:, :, 0, 2] = 255
    mean, std = sources._moments(images)
    np.testing.assert_allclose(mean, [0.5, 0.2, 0.5], rtol=1e-15)
    np.testing.assert_allclose(std, [0.5, 1.0, 0.5], rtol=1e-15)


def test_first_of_each_class_keeps_the_order_and_needs_enough():
    stored = [{"label": k, "at": i} for i, k in enumerate([1, 1, 0, 1, 0, 0])]
    chosen = make_fashion_mnist_mini.first_of_each_class(iter(stored), 2, 2)
    assert [example["at"] for example in chosen] == [0, 1, 2, 4]
    with pytest.raises(ValueError, match="Fewer than 4"):
        list(make_fashion_mnist_mini.first_of_each_class(iter(stored), 2, 4))


# Order.


def test_an_epoch_holds_each_example_once_and_drops_the_remainder():
    made = source(23)
    assert sources.steps_per_epoch(made, 5) == 4
    seen = labels(sources.training_batches(made, 5, seed=1, epoch=0))
    assert [len(batch) for batch in seen] == [5, 5, 5, 5]
    assert len(set(sum(seen, []))) == 20
    whole = sum(labels(sources.training_batches(made, 1, seed=1, epoch=0)), [])
    assert sorted(whole) == list(range(23))
    # The batch size only cuts the same order elsewhere.
    assert sum(seen, []) == whole[:20]


def test_images_travel_with_their_labels():
    made = source(23)
    for x, y in sources.training_batches(made, 5, seed=3, epoch=1):
        assert x.dtype == tf.float32 and y.dtype == tf.int64
        np.testing.assert_array_equal(x, made.train.inputs[y.numpy()])


def test_order_depends_on_seed_and_epoch_and_they_do_not_collide():
    made = source(64)
    pairs = [(0, 0), (0, 1), (1, 0), (1, 2), (2, 1), (3, 0), (0, 3), (1 + 2**32, 2)]
    orders = {
        tuple(sum(labels(sources.training_batches(made, 8, *pair)), []))
        for pair in pairs
    }
    assert len(orders) == len(pairs)


def test_order_is_pinned():
    # A run resumes with another version of this program only if this stays.
    seen = labels(sources.training_batches(source(12), 12, seed=5, epoch=3))
    assert seen == [[5, 0, 2, 4, 10, 8, 9, 6, 11, 7, 3, 1]]


def test_order_has_no_structure():
    # The differences of neighbours are uniform: chi-square with 59 degrees of
    # freedom has mean 59, deviation 11 (index_shuffle gives more than 4000).
    count = 60_000
    order = np.argsort(sources._random_words(count, 0, 1)[:, 0])
    found, _ = np.histogram(np.diff(order) % count, 60, (0, count))
    assert np.sum((found - found.mean()) ** 2 / found.mean()) < 59 + 5 * 11


@pytest.mark.parametrize("augment", choices.AUGMENTATIONS)
def test_batches_do_not_depend_on_global_seeds_or_earlier_calls(augment):
    made = source(40)
    tf.random.set_seed(1)
    first = batches(sources.training_batches(made, 8, 7, 2, augment=augment))
    tf.random.set_seed(2)
    tf.random.uniform([3])
    dataset = sources.training_batches(made, 8, 7, 2, augment=augment)
    assert_same(batches(dataset), first)
    assert_same(batches(dataset), first)  # Nor on having been read before.


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**63 - 1),
    batch_size=st.integers(1, 12),
    augment=st.sampled_from(choices.AUGMENTATIONS),
    at=st.floats(0, 1),
)
def test_start_batch_leaves_the_other_batches_bitwise_as_they_are(
    seed, epoch, batch_size, augment, at
):
    made = source(30)
    start = round(at * sources.steps_per_epoch(made, batch_size))
    whole = batches(
        sources.training_batches(made, batch_size, seed, epoch, augment=augment)
    )
    rest = batches(
        sources.training_batches(made, batch_size, seed, epoch, start, augment=augment)
    )
    assert_same(rest, whole[start:])


# Pixels.


def test_training_inputs_are_normalized(mini):
    x, y = next(iter(sources.training_batches(mini, 64, seed=0, epoch=0)))
    where = np.argsort(sources._random_words(6000, 0, 0)[:, 0])[:64]
    np.testing.assert_array_equal(y, mini.train.labels[where])
    wanted = (mini.train.inputs[where] / 255 - mini.mean) / mini.std
    # Two roundings of values up to 2: 2 * 2 * 2**-24, and of the constants.
    np.testing.assert_allclose(x, wanted, atol=6e-7)


def test_evaluation_is_in_order_normalized_alike_and_complete(mini):
    seen = batches(sources.evaluation_batches(mini, 300))
    assert [len(y) for _, y in seen] == [300, 300, 300, 100]
    np.testing.assert_array_equal(
        np.concatenate([y for _, y in seen]), mini.test.labels
    )
    wanted = (mini.test.inputs / 255 - mini.mean) / mini.std
    got = np.concatenate([x for x, _ in seen])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, atol=6e-7)


@pytest.mark.parametrize(
    ("flip", "dy", "dx"),
    [(0, 0, 0), (1, 0, 0), (0, 4, 0), (0, -4, 0), (0, 0, 3), (0, 0, -3), (1, -2, 1)],
)
def test_flip_shift_is_a_flip_then_a_shift_with_black(flip, dy, dx):
    images = np.random.default_rng(0).integers(1, 256, (2, 6, 5, 3), np.uint8)
    moved = sources._flip_shift(
        tf.constant(images), *tf.constant([[flip] * 2, [dy] * 2, [dx] * 2])
    )
    wanted = np.zeros_like(images)
    mirrored = images[:, :, ::-1] if flip else images
    for row in range(6):
        for column in range(5):
            if 0 <= row - dy < 6 and 0 <= column - dx < 5:
                wanted[:, row, column] = mirrored[:, row - dy, column - dx]
    np.testing.assert_array_equal(moved, wanted)


def test_flip_shift_moves_each_example_its_own_way():
    images = np.random.default_rng(0).integers(1, 256, (2, 6, 5, 1), np.uint8)
    moved = sources._flip_shift(
        tf.constant(images), *tf.constant([[1, 0], [0, 2], [0, 0]])
    )
    np.testing.assert_array_equal(moved[0], images[0, :, ::-1])
    np.testing.assert_array_equal(moved[1, 2:], images[1, :-2])


def test_augmentation_draws_every_flip_and_shift_about_equally():
    flip, dy, dx = sources._drawn_shift(sources._random_words(90_000, 0, 0)[:, 1])
    # Five standard deviations of a binomial count.
    assert abs(flip.sum() - 45_000) < 5 * 150
    for shift in (dy, dx):
        values, counts = np.unique(shift, return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert np.all(np.abs(counts - 10_000) < 5 * 95)
    together = np.unique(np.stack([flip, dy, dx]), axis=1, return_counts=True)[1]
    assert len(together) == 2 * 9 * 9
    assert np.all(np.abs(together - 556) < 5 * 24)


def test_augmentation_follows_the_position_not_the_batch_size():
    made = source(24)
    one = batches(sources.training_batches(made, 4, 1, 1, augment="flip_shift"))
    two = batches(sources.training_batches(made, 8, 1, 1, augment="flip_shift"))
    np.testing.assert_array_equal(
        np.concatenate([x for x, _ in one]), np.concatenate([x for x, _ in two])
    )
    plain = batches(sources.training_batches(made, 8, 1, 1))
    assert any((a != b).any() for (a, _), (b, _) in zip(two, plain, strict=True))


@pytest.mark.parametrize("flip", [0, 1])
def test_flip_crop_of_all_is_the_image_or_its_mirror(flip):
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), np.uint8)
    drawn = [tf.constant([v] * 2) for v in (flip, 1.0, 0.3, 0.7)]
    wanted = images[:, :, ::-1] if flip else images
    np.testing.assert_allclose(
        sources._flip_crop(tf.constant(images), *drawn, size=(6, 5)), wanted, atol=1e-3
    )


@pytest.mark.parametrize(("y", "x"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.25)])
def test_flip_crop_takes_the_part_it_is_told(y, x):
    # A plane: what is interpolated is exact.
    rows, columns = np.mgrid[0:9, 0:9]
    images = (10 * rows + columns).astype(np.uint8)[None, :, :, None]
    drawn = [tf.constant([v]) for v in (1, 0.25, y, x)]
    got = sources._flip_crop(tf.constant(images), *drawn, size=(9, 9))[0, :, :, 0]
    top, left = 4 * y, 4 * x
    wanted = 10 * (top + rows / 2) + (left + 4 - columns / 2)
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_flip_crop_draws_area_and_place_uniformly():
    drawn = sources._drawn_crop(sources._random_words(90_000, 0, 0)[:, 1])
    flip, area, y, x = drawn
    assert abs(flip.sum() - 45_000) < 5 * 150
    for values, low in ((area, sources.MIN_CROP), (y, 0.0), (x, 0.0)):
        counts, _ = np.histogram(values, bins=10, range=(low, 1.0))
        assert counts.sum() == 90_000
        assert np.all(np.abs(counts - 9_000) < 5 * 90)
    assert np.all(np.abs(np.corrcoef(np.stack(drawn)) - np.eye(4)) < 5 / 300)


def test_crops_are_preprocessed_as_the_source_says():
    made = dataclasses.replace(source(24), preprocess=lambda pixels: pixels - 1000.0)
    (x, _), *_ = sources.training_batches(made, 8, 1, 1, augment="flip_crop")
    assert x.dtype == tf.float32 and -1000 <= np.min(x) <= np.max(x) <= -745
    (x, _), *_ = sources.evaluation_batches(made, 5)
    np.testing.assert_array_equal(x, made.test.inputs[:5].astype(np.float32) - 1000)


# Files.


def embedded_folder():
    return (
        pathlib.Path(sources.__file__).parents[1] / "datasets/fashion_mnist_mini/1.0.0"
    )


def write(
    folder, image, label, examples, splits=("train", "test"), per_file=2, key="image"
):
    """A data set without builder code, `folder`/made/1.0.0."""
    name = "made"
    target = folder / name / "1.0.0"
    target.mkdir(parents=True)
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name,
            version=tfds.core.Version("1.0.0"),
            data_dir=str(target),
            module_name="",
        ),
        features=tfds.features.FeaturesDict({key: image, "label": label}),
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=per_file)
    writer.initialize_splits(list(splits))
    if not isinstance(examples, dict):
        examples = {split: examples for split in splits}
    writer.add_examples(examples)
    writer.close_all()
    return target


IMAGE = tfds.features.Image(shape=(4, 4, 3), encoding_format="png")
ANY_IMAGE = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
DEEP_IMAGE = tfds.features.Image(
    shape=(4, 4, 3), encoding_format="png", dtype=np.uint16
)
LABEL = tfds.features.ClassLabel(names=["cat", "dog"])


def pictures(*sizes):
    return [
        {"image": np.full((n, n, 3), i, np.uint8), "label": i % 2}
        for i, n in enumerate(sizes)
    ]


@pytest.mark.parametrize("test_split", ["test", "validation"])
@pytest.mark.parametrize("image", [IMAGE, ANY_IMAGE], ids=["fixed", "any_size"])
def test_a_folder_without_builder_code_is_read(tmp_path, image, test_split):
    # TFDS's default is to read files in turns, 16 examples from each.
    examples = pictures(*[4] * 45)
    write(tmp_path, image, LABEL, examples, ("train", test_split), per_file=20)
    made = sources.load("made", str(tmp_path))
    assert made.input_shape == (4, 4, 3)
    assert made.class_names == ("cat", "dog")
    for split in (made.train, made.test):
        assert split.inputs[:, 0, 0, 0].tolist() == list(range(45))
        assert split.labels.tolist() == [i % 2 for i in range(45)]


def text(tmp_path):
    write(tmp_path, tfds.features.Text(), LABEL, [{"image": "a", "label": 0}])


def deep(tmp_path):
    image = np.zeros((4, 4, 3), np.uint16)
    write(tmp_path, DEEP_IMAGE, LABEL, [{"image": image, "label": 0}])


def unequal(tmp_path):
    write(tmp_path, ANY_IMAGE, LABEL, pictures(4, 4, 5))


def unequal_splits(tmp_path):
    write(tmp_path, ANY_IMAGE, LABEL, {"train": pictures(4, 4), "test": pictures(5, 5)})


def no_labels(tmp_path):
    examples = [dict(example, label=-1) for example in pictures(4, 4)]
    write(tmp_path, IMAGE, LABEL, examples)


def no_test(tmp_path):
    write(tmp_path, IMAGE, LABEL, pictures(4), ("train", "other"))


def cut(tmp_path):
    folder = write(tmp_path, IMAGE, LABEL, pictures(4, 4, 4))
    file = next(folder.glob("*train*0"))
    file.write_bytes(file.read_bytes()[:-7])


def garbled(tmp_path):
    folder = write(tmp_path, IMAGE, LABEL, pictures(4, 4, 4))
    file = next(folder.glob("*test*0"))
    content = bytearray(file.read_bytes())
    content[40] ^= 255
    file.write_bytes(content)


def lost_file(tmp_path):
    next(write(tmp_path, IMAGE, LABEL, pictures(4)).glob("*train*0")).unlink()


def bad_json(tmp_path):
    folder = write(tmp_path, IMAGE, LABEL, pictures(4))
    (folder / "dataset_info.json").write_text("{")


def declare(number):
    def prepare(tmp_path):
        folder = write(tmp_path, IMAGE, LABEL, pictures(4, 4))
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
    with pytest.raises(sources.DataError, match=law) as error:
        sources.load("made", str(tmp_path))
    assert "made" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_images_are_cut_to_squares_and_resized(tmp_path):
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200  # the square in the middle
    tall = np.full((12, 6, 3), 50, np.uint8)
    examples = [{"image": image, "label": 0} for image in (wide, tall, wide[:, :4])]
    write(tmp_path, ANY_IMAGE, LABEL, examples)
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
    write(tmp_path, ANY_IMAGE, LABEL, examples)
    made = sources.load("made", str(tmp_path), image_size=4, crop_pct=0.5)
    assert made.input_shape == (4, 4, 3) and made.train.inputs.shape == (4, 8, 8, 3)
    made = dataclasses.replace(made, preprocess=lambda pixels: pixels)
    for batches_ in (
        sources.training_batches(made, 4, 0, 0),
        sources.evaluation_batches(made, 4),
    ):
        (x, _), *_ = batches_
        np.testing.assert_array_equal(x, np.zeros((4, 4, 4, 3)))
    (x, _), *_ = sources.training_batches(made, 4, 0, 0, augment="flip_crop")
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
    write(tmp_path, tfds.features.Text(), LABEL, SENTENCES, key="sentence")
    made = sources.load("made", str(tmp_path), tokenize=tokenize)
    assert made.is_text and made.input_shape == (3,)
    assert made.train.inputs.tolist() == [[3, 0, 0], [3, 5, 0], [0, 0, 0], [4, 5, 6]]
    assert made.test.labels.tolist() == [1, 1, 0, 1]
    (x, y), *_ = sources.training_batches(made, 4, 0, 0)
    assert x.dtype == tf.int32 and sorted(y.numpy()) == [0, 1, 1, 1]
    with pytest.raises(
        sources.DataError, match=r"`augment` \('flip_shift'\) is for im"
    ):
        sources.training_batches(made, 4, 0, 0, augment="flip_shift")
    with pytest.raises(sources.DataError, match="texts need a --model of keras_hub"):
        sources.load("made", str(tmp_path))


@pytest.mark.parametrize("image", [IMAGE, ANY_IMAGE], ids=["fixed", "any_size"])
def test_more_than_the_limit_is_refused(tmp_path, monkeypatch, image):
    write(tmp_path, image, LABEL, pictures(4, 4))
    monkeypatch.setattr(sources, "MAX_DECODED_BYTES", 4 * 4 * 4 * 3)
    sources.load("made", str(tmp_path))  # Both splits fill it exactly.
    monkeypatch.setattr(sources, "MAX_DECODED_BYTES", 4 * 4 * 4 * 3 - 1)
    with pytest.raises(sources.DataError, match="at most .* GiB fit.*streaming"):
        sources.load("made", str(tmp_path))


def test_without_network_nothing_is_written(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(sources.urllib.request, "getproxies", dict)
    monkeypatch.setattr(sources.socket, "create_connection", refuse)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    folder = tmp_path / "a" / "b"
    with pytest.raises(sources.DataError, match="no network.*--data_dir") as error:
        sources.load("cifar100", str(folder))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("made", ["version", "name", "nothing"])
def test_a_download_that_fails_leaves_nothing(tmp_path, monkeypatch, made):
    def fail(self, download_dir=None, download_config=None):
        target = pathlib.Path(self.data_path)
        if made != "nothing":
            (target if made == "version" else target.parent).mkdir(parents=True)
        (pathlib.Path(download_dir) / "half.tar.gz.tmp").write_text("half")
        raise ConnectionError("reset\nby peer")

    monkeypatch.setattr(sources, "has_network", lambda address: True)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    kept = tmp_path / "kept"
    kept.mkdir()
    for folder in (kept, tmp_path / "new" / "er"):
        with pytest.raises(sources.DataError, match="--data_dir.*: reset by peer"):
            sources.load("cifar100", str(folder))
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]


def test_a_download_that_works_is_read(tmp_path, monkeypatch):
    def prepare(self, download_dir=None, download_config=None):
        # The embedded files under the names of mnist 3.0.1.
        target = pathlib.Path(self.data_path)
        target.mkdir(parents=True)
        for file in embedded_folder().iterdir():
            content = file.read_bytes()
            if file.suffix == ".json":
                content = content.replace(b"fashion_mnist_mini", b"mnist")
                content = content.replace(b'"1.0.0"', b'"3.0.1"')
            renamed = file.name.replace("fashion_mnist_mini", "mnist")
            (target / renamed).write_bytes(content)
        self.info.read_from_directory(str(target))

    monkeypatch.setattr(sources, "has_network", lambda address: True)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", prepare)
    assert len(sources.load("mnist", str(tmp_path)).train) == 6000
    assert [path.name for path in tmp_path.iterdir()] == ["mnist"]


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "law"),
    [
        (dict(batch_size=0), r"`batch_size` \(0\) must be between 1 and the 8"),
        (dict(batch_size=9), r"`batch_size` \(9\) must be between 1 and the 8"),
        (dict(seed=-1), r"`seed` \(-1\)"),
        (dict(seed=2**63), r"`seed` \(9223372036854775808\)"),
        (dict(epoch=-1), r"`epoch` \(-1\)"),
        (dict(start_batch=-1), r"`start_batch` \(-1\)"),
        (dict(start_batch=5), r"`start_batch` \(5\) must be between 0 and the 4"),
        (dict(augment="mixup"), r"`augment` \('mixup'\) must be one of"),
        (dict(replicas=4), r"`batch_size` \(2\) must be a multiple of the 4 replicas"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_arguments_out_of_range_are_refused(arguments, law):
    arguments = dict(batch_size=2, seed=0, epoch=0) | arguments
    with pytest.raises(sources.DataError, match=law):
        sources.training_batches(source(8), **arguments)


def test_evaluation_batch_size_of_zero_is_refused():
    with pytest.raises(sources.DataError, match=r"`batch_size` \(0\)"):
        sources.evaluation_batches(source(8), 0)


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("workers, replicas", [(1, 2), (2, 2), (2, 4)])
def test_the_shares_of_all_workers_are_the_batch(workers, replicas, start):
    arguments = (source(26), 8, 1, 3, start, "flip_shift")
    whole = batches(sources.training_batches(*arguments))
    shares = [
        batches(sources.training_batches(*arguments, worker, workers, replicas))
        for worker in range(workers)
    ]
    local = replicas // workers
    assert {len(share) for share in shares} == {local * len(whole)} != {0}
    for i, (inputs, classes) in enumerate(whole):
        parts = [
            part for share in shares for part in share[i * local : (i + 1) * local]
        ]
        np.testing.assert_array_equal(np.concatenate([x for x, _ in parts]), inputs)
        np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), classes)


def test_source_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        source(4).num_classes = 3
