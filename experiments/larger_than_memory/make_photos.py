"""Makes a folder of many photos of the few of a TFDS data set, for `record.md`.

    python experiments/larger_than_memory/make_photos.py --output=photos --count=21000

Each is a random part of a real photo, flipped or not, as a JPEG file of its own.
"""

import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import app, flags

flags.DEFINE_string("output", None, "New folder.", required=True)
flags.DEFINE_integer("count", 21_000, "How many files.")
flags.DEFINE_integer("side", 320, "Of each photo, in pixels.")
flags.DEFINE_string("data_dir", None, "TFDS's folder.")


def main(_: list[str]) -> None:
    """Writes the files."""
    given = flags.FLAGS
    builder = tfds.builder("grocery_fruit", data_dir=given.data_dir)
    names = builder.info.features["label"].names
    photos = list(tfds.as_numpy(builder.as_dataset(split="train")))
    for name in names:
        (pathlib.Path(given.output) / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(given.count):
        photo = photos[i % len(photos)]
        pixels = photo["image"]
        side = min(pixels.shape[:2])
        part = int(side * generator.uniform(0.5, 1))
        top, left = (generator.integers(0, n - part + 1) for n in pixels.shape[:2])
        square = pixels[top : top + part, left : left + part]
        square = square[:, :: generator.choice([-1, 1])]
        resized = tf.image.resize(square, [given.side, given.side], antialias=True)
        content = tf.io.encode_jpeg(tf.cast(tf.round(resized), tf.uint8), quality=90)
        folder = pathlib.Path(given.output) / names[photo["label"]]
        (folder / f"{i:06d}.jpg").write_bytes(content.numpy())


if __name__ == "__main__":
    app.run(main)
