"""Makes the embedded data set: a small, class-balanced part of Fashion-MNIST.

    python -m mp_loop.datasets.make_fashion_mnist_mini \
        --data_dir=$HOME/tensorflow_datasets --output_dir=/tmp/mini

takes the first 600 training and the first 100 test examples of each class, in
the order in which TFDS stores `fashion_mnist` 3.0.1, and writes them in TFDS's
own form to `<output_dir>/1.0.0`, where `tfds.builder_from_directory` reads
them. The decoded images and labels are the same at every run; the bytes of the
record files need not be.
"""

import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags

NAME = "fashion_mnist_mini"
VERSION = "1.0.0"
SOURCE = "fashion_mnist:3.0.1"
PER_CLASS = {"train": 600, "test": 100}

NOTICE = """\
The images and labels in this folder are a subset of Fashion-MNIST
(https://github.com/zalandoresearch/fashion-mnist), stored in another file
format. Fashion-MNIST is distributed under the following licence.

The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of
this software and associated documentation files (the "Software"), to deal in
the Software without restriction, including without limitation the rights to
use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of
the Software, and to permit persons to whom the Software is furnished to do so,
subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS
FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER
IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def first_of_each_class(
    examples: Iterator[dict[str, np.ndarray]], num_classes: int, per_class: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the first `per_class` examples of each class, in stored order."""
    taken = np.zeros(num_classes, np.int64)
    for example in examples:
        label = int(example["label"])
        if taken[label] < per_class:
            taken[label] += 1
            yield example
        if np.all(taken == per_class):
            return
    raise ValueError(f"Fewer than {per_class} examples in a class: {taken.tolist()}.")


def make(data_dir: str | None, output_dir: str) -> pathlib.Path:
    """Writes the data set below `output_dir`; returns the folder that holds it.

    Args:
      data_dir: the TFDS folder with `fashion_mnist` (downloaded there if it is
        missing); None is TFDS's default folder.
      output_dir: the folder that gets `1.0.0`; `1.0.0` must not exist yet.
    """
    source = tfds.builder(SOURCE, data_dir=data_dir)
    if not source.is_prepared():
        source.download_and_prepare()
    folder = pathlib.Path(output_dir) / VERSION
    folder.mkdir(parents=True)
    labels = source.info.features["label"]
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=NAME,
            version=tfds.core.Version(VERSION),
            data_dir=str(folder),
            module_name="mp_loop.datasets.make_fashion_mnist_mini",
        ),
        description=(
            "The first 600 training and the first 100 test examples of each class "
            f"of {SOURCE}, in stored order. MIT licence, see LICENSE."
        ),
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=labels.names),
            }
        ),
        supervised_keys=("image", "label"),
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        citation=source.info.citation,
    )
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=6000)
    writer.initialize_splits(list(PER_CLASS))
    for split, per_class in PER_CLASS.items():
        read = source.as_dataset(split=split, shuffle_files=False)
        chosen = first_of_each_class(
            read.as_numpy_iterator(), labels.num_classes, per_class
        )
        # One call: SequentialWriter rewrites the metadata at every call.
        writer.add_examples({split: list(chosen)})
    writer.close_all()
    (folder / "LICENSE").write_text(NOTICE)
    return folder


def main(argv: list[str]) -> None:
    """Writes the data set."""
    if len(argv) > 1:
        raise app.UsageError(f"Left over on the command line: {argv[1:]}.")
    make(_DATA_DIR.value, _OUTPUT_DIR.value)


if __name__ == "__main__":
    _DATA_DIR = flags.DEFINE_string(
        "data_dir", None, "TFDS folder with fashion_mnist; default: TFDS's own."
    )
    _OUTPUT_DIR = flags.DEFINE_string(
        "output_dir", None, "Folder that gets the data set.", required=True
    )
    app.run(main)
