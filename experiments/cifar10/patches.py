"""Writes the covariance of the training images' patches: see `model.py`.

python -m experiments.cifar10.patches DATA_DIR
"""

import json
import sys

import numpy as np
import tensorflow_datasets as tfds

from experiments.cifar10 import model


def main() -> None:
    """Reads TFDS's data set in the folder of the first argument."""
    data = tfds.load("cifar10", split="train", data_dir=sys.argv[1], batch_size=-1)
    pixels = tfds.as_numpy(data)["image"] / 255
    pixels = (pixels - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
    corners = [pixels[:, y : y + 31, x : x + 31] for y in (0, 1) for x in (0, 1)]
    patches = np.concatenate(corners, axis=-1).reshape(-1, 12)
    covariance = (patches.T @ patches / len(patches)).round(6)
    model.COVARIANCE.write_text(json.dumps(covariance.tolist()) + "\n")


if __name__ == "__main__":
    main()
