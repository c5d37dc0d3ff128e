"""Folders of image files that are made for tests."""

import pathlib

import numpy as np
import tensorflow as tf


def content(pixels, suffix=".png"):
    """An image file's bytes, of uint8 [h, w, c]."""
    if suffix == ".png":
        return tf.io.encode_png(pixels).numpy()
    return tf.io.encode_jpeg(pixels, quality=95).numpy()


def flat(value, size=4, channels=3):
    return np.full((size, size, channels), value, np.uint8)


def write(folder, files):
    """Writes files by relative path: bytes, pixels, or a number that fills them."""
    folder = pathlib.Path(folder)
    for name, what in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, int):
            what = flat(what)
        if not isinstance(what, bytes):
            what = content(what, path.suffix)
        path.write_bytes(what)
    return folder


def of_source(folder, source, train=20, test=5):
    """A few images of each class, as PATH/train/CLASS/*.png and PATH/test."""
    for name, split, count in (
        ("train", source.train, train),
        ("test", source.test, test),
    ):
        for number, label in enumerate(source.class_names):
            of_class = split.inputs[split.labels == number][:count]
            label = label.replace("/", "-")
            files = {f"{name}/{label}/{i}.png": x for i, x in enumerate(of_class)}
            write(folder, files)
    return folder
