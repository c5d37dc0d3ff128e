"""Writes the training sentences of rotten_tomatoes into a file, one a line.

python experiments/language_model/sentences.py runs/sentences.txt [DATA_DIR]
"""

import pathlib
import sys

import tensorflow_datasets as tfds


def main(path: str, data_dir: str | None = None) -> None:
    """Writes them in the order of the data set."""
    data = tfds.load("rotten_tomatoes", split="train", data_dir=data_dir)
    lines = [example["text"].decode() for example in data.as_numpy_iterator()]
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
