"""Data sets that are made for tests, in memory and in files."""

import pathlib

import numpy as np
import tensorflow_datasets as tfds

from mp_loop.data import decoding, sources


def source(count, shape=(6, 5, 1), test_count=3):
    """Example i is filled with pixels that name it: [0, 0] is i."""
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    split = decoding.Split(images, np.arange(count))
    return sources.Source(
        name="made",
        train=split,
        test=decoding.Split(images[:test_count], np.arange(test_count)),
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
