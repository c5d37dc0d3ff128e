"""Your own data as a function: copy it next to where you start the commands.

    python -m mp_loop.train --dataset=module:own_data:load --output_dir=runs/a

Replace `images_and_labels` with your own. `load` may return rows of numbers,
[n, columns], or texts in place of images: see docs/data.md.
"""

import numpy as np

from mp_loop.data import batching, sources

CLASSES = ["dark", "bright"]


def images_and_labels(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [count, 16, 16, 1] and labels int64 [count]."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(CLASSES), count)
    images = generator.integers(0, 128, (count, 16, 16, 1), dtype=np.uint8)
    images[:, 4:12, 4:12] += (100 * labels[:, None, None, None]).astype(np.uint8)
    return images, labels


def load() -> dict[str, np.ndarray | list[str]]:
    """The same data whenever it is called: a run that is resumed calls it again."""
    x_train, y_train = images_and_labels(2048, seed=0)
    x_test, y_test = images_and_labels(256, seed=1)
    return {
        "x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test,
        "class_names": CLASSES,
    }  # fmt: skip


def main(name: str = "module:own_data:load") -> sources.Source:
    """Uses them in a program of your own, in the order of epoch 0 of seed 0."""
    source = sources.load(name)
    for images, labels in batching.training_batches(source, 512, seed=0, epoch=0):
        found = np.bincount(labels, minlength=source.num_classes)
        told = dict(zip(source.class_names, found.tolist(), strict=True))
        print(f"{images.shape[0]} images of mean {np.mean(images):+.2f}: {told}")
    return source


if __name__ == "__main__":
    main()
