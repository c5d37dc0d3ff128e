"""Your own images as a data set: `python examples/own_data.py [FOLDER]`.

Arrays of images and labels become a TFDS data set, which the commands read by name:

    python -m mp_loop.train --dataset=squares --data_dir=FOLDER --output_dir=runs/a

Replace `images_and_labels` with your own. Any image size will do; the commands need
8-bit images and class labels, and the splits `train` and `test` (or `validation`).
"""

import sys

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

CLASSES = ["dark", "bright"]


def images_and_labels(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [count, 16, 16, 1] and labels int64 [count]."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(CLASSES), count)
    images = generator.integers(0, 128, (count, 16, 16, 1), dtype=np.uint8)
    images[:, 4:12, 4:12] += (100 * labels[:, None, None, None]).astype(np.uint8)
    return images, labels


def main(folder: str = "data") -> None:
    """Writes the data set `squares` to FOLDER/squares/1.0.0."""
    splits = {
        split: tf.data.Dataset.from_tensor_slices(
            dict(zip(("image", "label"), images_and_labels(count, seed), strict=True))
        )
        for seed, (split, count) in enumerate({"train": 2048, "test": 256}.items())
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="squares",
        version="1.0.0",
        data_dir=folder,
        split_datasets=splits,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(16, 16, 1)),
                "label": tfds.features.ClassLabel(names=CLASSES),
            }
        ),
    )
    print(f"Add --dataset=squares --data_dir={folder} to a command.")


if __name__ == "__main__":
    main(*sys.argv[1:])
