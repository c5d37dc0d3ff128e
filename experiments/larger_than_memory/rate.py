"""How fast batches come, beside decoding alone on the same cores; see `record.md`.

    python experiments/larger_than_memory/rate.py --folder=photos --store=photos.records

The arms take turns in one process, each with a new pipeline, which is warm when its
batches are timed. Beside the time of the clock it tells that of the processor, which
other work on the same cores changes less.
"""

import statistics
import time
from collections.abc import Callable

import tensorflow as tf
from absl import app, flags

from mp_loop.data import batching, image_files, sources

flags.DEFINE_string("folder", None, "Folder of photos.", required=True)
flags.DEFINE_string("store", None, "The store that was made of it.", required=True)
flags.DEFINE_integer("side", 320, "Of the photos.")
flags.DEFINE_integer("batch_size", 64, "Images in a batch.")
flags.DEFINE_integer("warm", 10, "Batches that are not timed.")
flags.DEFINE_integer("batches", 30, "Batches of a turn.")
flags.DEFINE_integer("turns", 5, "Turns of each arm.")


def decoding_alone(source: sources.Source, batch_size: int) -> tf.data.Dataset:
    """Decodes the files of a folder, one by one, and does nothing else."""
    images = source.train.inputs
    paths = [f"{images.folder}/{name}" for name in images.files]
    decode = image_files.reader(images.shape[-1], images.side)
    files = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths), seed=0)
    decoded = files.map(
        lambda path: decode(tf.io.read_file(path)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    # A number of each: no batch is put together.
    return decoded.map(lambda x: x[0, 0, 0]).batch(batch_size).prefetch(2)


def rates(make: Callable[[], tf.data.Dataset], given: flags) -> tuple[float, float]:
    """Images per second of the clock, and of the processor, of a new pipeline."""
    batches = iter(make())
    for _ in range(given.warm):
        next(batches)
    began, worked = time.perf_counter(), time.process_time()
    for _ in range(given.batches):
        next(batches)
    images = given.batches * given.batch_size
    worked = time.process_time() - worked
    return images / (time.perf_counter() - began), images / worked


def main(_: list[str]) -> None:
    """Prints a table."""
    given = flags.FLAGS
    folder, store = (
        sources.load(
            name,
            image_size=given.side,
            max_data_gib=1e-9,
            validation_fraction=0.02,
        )
        for name in (f"folder:{given.folder}", f"array_record:{given.store}")
    )
    size = given.batch_size

    def arm(source: sources.Source, augment: str, raw: bool = True) -> Callable:
        return lambda: batching.training_batches(
            source, size, 0, 0, augment=augment, raw=raw
        )

    arms = {
        "decoding alone": lambda: decoding_alone(folder, size),
        "folder": arm(folder, "none"),
        "folder, floats in the pipeline": arm(folder, "none", raw=False),
        "folder, flip_shift": arm(folder, "flip_shift"),
        "store": arm(store, "none"),
    }
    found = {name: [] for name in arms}
    for _ in range(given.turns):
        for name, make in arms.items():
            found[name].append(rates(make, given))
    for place, what in enumerate(("clock", "processor")):
        alone = [turn[place] for turn in found["decoding alone"]]
        for name, turns in found.items():
            own = [turn[place] for turn in turns]
            shares = [x / y for x, y in zip(own, alone, strict=True)]
            print(
                f"{what:10} {name:31} {statistics.median(own):6.0f} images/s, of "
                f"decoding alone {statistics.median(shares):.2f} "
                f"({min(shares):.2f} to {max(shares):.2f})"
            )


if __name__ == "__main__":
    app.run(main)
