"""TFDS in, batches out.

    source = data.load("fashion_mnist_mini")
    for inputs, labels in data.training_batches(source, 128, seed=0, epoch=3):
        ...

A data set is decoded once, into memory. What an epoch holds, and in which
order, is a function of (seed, epoch) alone: not of `tf.random.set_seed`, not of
earlier calls, not of the batch a run resumed from. `start_batch` costs nothing:
skipped batches are never read.
"""

import contextlib
import dataclasses
import functools
import importlib.resources
import os
import pathlib
import shutil
import socket
import tempfile
import urllib.request

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

EMBEDDED = ("fashion_mnist_mini",)
AUGMENTATIONS = ("none", "flip_shift")
MAX_DECODED_BYTES = 4 * 2**30
MAX_SHIFT = 4

# Where TFDS keeps prepared data sets: if not even this host answers, there is no
# network. TFDS itself would retry for more than three minutes.
_PROBE_ADDRESS = ("storage.googleapis.com", 443)
_PROBE_SECONDS = 5.0


class DataError(ValueError):
    """A data set that cannot be used; the message is one line."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Decoded examples: `images` uint8 [n, h, w, c], `labels` int64 [n]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def _images_on_host(self) -> tf.Tensor:
        # One copy for all epochs. Named, or TF would put it on a GPU.
        with tf.device("CPU:0"):
            return tf.convert_to_tensor(self.images)


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A data set in memory.

    Attributes:
      name: the name it was asked for by.
      train: the training examples.
      test: the examples of the split `test`, or `validation` without one.
      num_classes: labels are in [0, num_classes).
      image_shape: (h, w, c).
      class_names: one name for each class.
      mean: float64 [c], of pixel / 255 over the training examples.
      std: float64 [c], likewise (population); 1 for a constant channel.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray


def load(name: str, data_dir: str = "") -> Source:
    """Reads a TFDS data set of images and labels into memory.

    A data set that is not in `data_dir` is downloaded there by TFDS.

    Args:
      name: `fashion_mnist_mini` (in the package), or what `tfds.load` takes:
        `cifar10`, `cifar10:3.0.2`, or the name of a folder in `data_dir` that
        TFDS can read without builder code.
      data_dir: TFDS's folder; empty is TFDS's default.

    Returns:
      All examples of both splits, in stored order.

    Raises:
      DataError: unknown or missing data set, unreadable files, features that are
        not an 8-bit image and a class label, images of unequal size, or more
        than `MAX_DECODED_BYTES` of pixels.
    """
    builder = _prepared_builder(name, data_dir)
    image, label = _feature_names(name, builder.info)
    splits = builder.info.splits
    test_name = "test" if "test" in splits else "validation"
    for split in ("train", test_name):
        if split not in splits or not splits[split].num_examples:
            raise DataError(
                f"Data set '{name}' has the splits {sorted(splits)}; 'train' and "
                "'test' or 'validation', with examples, are needed."
            )
    train = _decode(name, builder, "train", image, label, None)
    test = _decode(name, builder, test_name, image, label, train)
    mean, std = _moments(train.images)
    return Source(
        name=name,
        train=train,
        test=test,
        num_classes=builder.info.features[label].num_classes,
        image_shape=train.images.shape[1:],
        class_names=tuple(builder.info.features[label].names),
        mean=mean,
        std=std,
    )


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Returns the number of whole training batches.

    Raises:
      DataError: `batch_size` is below 1 or above the number of examples.
    """
    count = len(source.train)
    if not 1 <= batch_size <= count:
        raise DataError(
            f"`batch_size` ({batch_size}) must be between 1 and the {count} training "
            f"examples of '{source.name}'."
        )
    return count // batch_size


def training_batches(
    source: Source,
    batch_size: int,
    seed: int,
    epoch: int,
    start_batch: int = 0,
    augment: str = "none",
    worker: int = 0,
    workers: int = 1,
    replicas: int = 1,
) -> tf.data.Dataset:
    """Returns one epoch of shuffled training batches, from `start_batch` on.

    With one Philox stream of key (seed, epoch) and two words for each position p:

        order = argsort(word[:, 0])           # example at position p
        flip, dy, dx = fields of word[p, 1]   # its augmentation
        batch k = positions k * batch_size ... (k + 1) * batch_size - 1

    so (seed, epoch) and (epoch, seed) differ, and nothing else matters.

    Args:
      source: what `load` returned.
      batch_size: examples in each batch; the remainder of the epoch is dropped.
      seed: at least 0, below 2**63.
      epoch: at least 0, below 2**63.
      start_batch: batches to leave out; the others are bitwise what they are in
        the whole epoch.
      augment: `none`, or `flip_shift`: a horizontal flip with probability 1/2,
        then a shift by up to `MAX_SHIFT` pixels in each direction, black moved in.
      worker: only the share of this one of `workers` is read.
      workers: each of them has a share of every batch.
      replicas: equal parts that a batch is cut into; a worker's follow each other.

    Returns:
      A data set of (inputs float32 [batch_size / replicas, h, w, c], labels int64
      [batch_size / replicas]); inputs are (pixel / 255 - mean) / std of the training
      split.

    Raises:
      DataError: an argument out of range.
    """
    steps = steps_per_epoch(source, batch_size)
    for argument, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value < 2**63:
            raise DataError(f"`{argument}` ({value}) must be in [0, 2**63).")
    if not 0 <= start_batch <= steps:
        raise DataError(
            f"`start_batch` ({start_batch}) must be between 0 and the {steps} batches "
            "of an epoch."
        )
    if augment not in AUGMENTATIONS:
        raise DataError(f"`augment` ('{augment}') must be one of {AUGMENTATIONS}.")
    if batch_size % replicas:
        raise DataError(
            f"`batch_size` ({batch_size}) must be a multiple of the {replicas} "
            "replicas."
        )

    words = _random_words(len(source.train), seed, epoch)
    order = np.argsort(words[:, 0], kind="stable")
    flip, dy, dx = _augmentation(words[:, 1])
    taken = slice(start_batch * batch_size, steps * batch_size)
    share = batch_size // replicas
    columns = tuple(
        column[taken].reshape(-1, workers, replicas // workers, share)[:, worker]
        for column in (order, source.train.labels[order], flip, dy, dx)
    )
    columns = tuple(column.reshape(-1, share) for column in columns)
    images = source.train._images_on_host
    scale, offset = _normalization(source)

    def read(index, labels, flip, dy, dx):
        pixels = tf.gather(images, index)
        if augment == "flip_shift":
            pixels = _flip_shift(pixels, flip, dy, dx)
        return tf.cast(pixels, tf.float32) * scale + offset, labels

    return _pipeline(columns, read)


def evaluation_batches(source: Source, batch_size: int) -> tf.data.Dataset:
    """Returns all test examples in stored order; the last batch may be smaller.

    Args:
      source: what `load` returned.
      batch_size: examples in each batch but the last.

    Returns:
      A data set of (inputs, labels) as in `training_batches`, not augmented.

    Raises:
      DataError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise DataError(f"`batch_size` ({batch_size}) must be at least 1.")
    images = source.test._images_on_host
    scale, offset = _normalization(source)

    def read(index, labels):
        pixels = tf.gather(images, index)
        return tf.cast(pixels, tf.float32) * scale + offset, labels

    columns = (np.arange(len(source.test)), source.test.labels)
    return _pipeline(columns, read, batch_size)


# Finding and reading.


def _prepared_builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    if name in EMBEDDED:
        files = importlib.resources.files("mp_loop.datasets") / name / "1.0.0"
        return tfds.builder_from_directory(str(files))
    root = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
    try:
        # Without builder code TFDS reads the files' own metadata.
        builder = tfds.builder(name, data_dir=root)
    except tfds.core.DatasetNotFoundError as error:
        raise DataError(
            f"Data set '{name}' is neither in '{root}' nor known to TFDS; embedded: "
            f"{', '.join(EMBEDDED)}; point --data_dir at the folder that holds it."
        ) from error
    except Exception as error:  # A builder's code, or broken json: any type.
        raise DataError(_line(f"Data set '{name}' cannot be opened", error)) from error
    if not builder.is_prepared():
        _download(name, builder, root)
    return builder


def _download(name: str, builder: tfds.core.DatasetBuilder, root: str) -> None:
    """Downloads and prepares; after a failure the disk is as it was before."""
    advice = (
        "run once with network so that TFDS downloads it, or point --data_dir at a "
        "folder that holds it"
    )
    if not _network():
        raise DataError(
            f"Data set '{name}' is not in '{root}' and there is no network: {advice}."
        )
    folders = [*_lineage(str(builder.data_path)), *_lineage(root)]
    new = [folder for folder in folders if not folder.exists()]
    work = None
    try:
        os.makedirs(root, exist_ok=True)
        work = tempfile.mkdtemp(prefix=".mp_loop_download_", dir=root)
        # Files fetched by hand stay where TFDS tells its users to put them.
        config = tfds.download.DownloadConfig(
            manual_dir=os.path.join(root, "downloads", "manual")
        )
        builder.download_and_prepare(download_dir=work, download_config=config)
    except Exception as error:  # Network, disk, checksum, parser: any type.
        raise DataError(
            _line(f"Data set '{name}' cannot be prepared in '{root}'; {advice}", error)
        ) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        # What was made on the way goes again where it is empty, innermost first.
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _lineage(folder: str) -> list[pathlib.Path]:
    path = pathlib.Path(folder).absolute()
    return [path, *path.parents]


def _network() -> bool:
    """Whether a download can begin: at once where TFDS retries for minutes."""
    if {"http", "https", "all"} & set(urllib.request.getproxies()):
        return True
    try:
        socket.create_connection(_PROBE_ADDRESS, timeout=_PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _feature_names(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    features = info.features
    known = dict(features.items()) if hasattr(features, "items") else {}
    keys = info.supervised_keys
    if not (keys and len(keys) == 2 and all(isinstance(key, str) for key in keys)):
        keys = ("image", "label")
    image, label = (known.get(key) for key in keys)
    if (
        not isinstance(image, tfds.features.Image)
        or not isinstance(label, tfds.features.ClassLabel)
        or image.np_dtype != np.uint8
        or not label.num_classes
    ):
        found = {key: type(value).__name__ for key, value in known.items()}
        raise DataError(
            _line(
                f"Data set '{name}' must have an 8-bit Image and a ClassLabel",
                f"it has {found or features}",
            )
        )
    return keys


def _decode(
    name: str,
    builder: tfds.core.DatasetBuilder,
    split: str,
    image: str,
    label: str,
    like: Split | None,
) -> Split:
    """Decodes one split in stored order; `like` gives the size it must have."""
    info = builder.info
    count = info.splits[split].num_examples
    shape = info.features[image].shape
    same_size = None not in shape
    used = 0 if like is None else like.images.nbytes
    images, filled = None, 0
    labels = np.empty(count, np.int64)
    try:
        examples = builder.as_dataset(
            split=split,
            shuffle_files=False,
            # One file after the other: the order is the stored one. Files that
            # hold another number of examples than declared are an error.
            read_config=tfds.ReadConfig(
                try_autocache=False, interleave_cycle_length=1, assert_cardinality=True
            ),
            decoders=tfds.decode.PartialDecoding(
                {image: info.features[image], label: info.features[label]}
            ),
        )
        # Images whose size is not declared are compared one by one.
        for batch in examples.batch(256 if same_size else 1).as_numpy_iterator():
            pixels = batch[image]
            if images is None:
                size = pixels.shape[1:]
                if like is not None:
                    size = like.images.shape[1:]
                total = used + count * int(np.prod(size))
                if total > MAX_DECODED_BYTES:
                    raise DataError(
                        f"Data set '{name}' takes {total / 2**30:.1f} GiB decoded; at "
                        f"most {MAX_DECODED_BYTES / 2**30:.3g} GiB fit: it is held in "
                        "memory, streaming from disk is not there yet."
                    )
                images = np.empty((count, *size), np.uint8)
            if pixels.shape[1:] != images.shape[1:]:
                raise DataError(
                    f"Data set '{name}' has images of unequal size: "
                    f"{images.shape[1:]} and {pixels.shape[1:]}."
                )
            images[filled : filled + len(pixels)] = pixels
            labels[filled : filled + len(pixels)] = batch[label]
            filled += len(pixels)
    except (tf.errors.OpError, OSError, AssertionError) as error:
        raise DataError(
            _line(f"Data set '{name}', split '{split}', cannot be read", error)
        ) from error
    classes = info.features[label].num_classes
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"Data set '{name}', split '{split}', has labels from {labels.min()} to "
            f"{labels.max()}; they must be in [0, {classes})."
        )
    return Split(images, labels)


def _line(what: str, why: object) -> str:
    """One line of at most some 400 characters."""
    reason = " ".join(str(why).split()) or type(why).__name__
    return f"{what}: {reason[:300].rstrip('. ')}."


# Arithmetic.


def _moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of pixel / 255 for each channel, in float64."""
    channels = images.shape[-1]
    # Counting the 256 pixel values is exact, and needs no float copy.
    counts = np.stack(
        [
            sum(
                np.bincount(chunk[..., c].ravel(), minlength=256)
                for chunk in np.array_split(images, max(1, len(images) // 4096))
            )
            for c in range(channels)
        ]
    )
    values = np.arange(256, dtype=np.float64) / 255
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ values
    std = np.sqrt(np.sum(weights * (values - mean[:, None]) ** 2, axis=1))
    return mean, np.where(std > 0, std, 1.0)


def _normalization(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """(pixel / 255 - mean) / std as pixel * scale + offset, float32 [c]."""
    scale = 1 / (255 * source.std)
    return scale.astype(np.float32), (-source.mean / source.std).astype(np.float32)


def _random_words(count: int, seed: int, epoch: int) -> np.ndarray:
    # `tf.random.experimental.index_shuffle` would do with less memory, but it
    # keeps 32 bits of the seed and its neighbours are correlated.
    with tf.device("CPU:0"):
        return tf.random.stateless_uniform(
            (count, 2),
            seed=tf.constant([seed, epoch], tf.int64),
            minval=None,
            maxval=None,
            dtype=tf.int64,
            alg="philox",
        ).numpy()


def _augmentation(word: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flip in {0, 1}, dy and dx in [-MAX_SHIFT, MAX_SHIFT]; int32 [n] each."""
    bits = word.view(np.uint64)
    span = np.uint64(2 * MAX_SHIFT + 1)
    flip = bits & np.uint64(1)
    dy = (bits >> np.uint64(1) & np.uint64(2**31 - 1)) % span
    dx = (bits >> np.uint64(32)) % span
    return (
        flip.astype(np.int32),
        dy.astype(np.int32) - MAX_SHIFT,
        dx.astype(np.int32) - MAX_SHIFT,
    )


def _flip_shift(
    images: tf.Tensor, flip: tf.Tensor, dy: tf.Tensor, dx: tf.Tensor
) -> tf.Tensor:
    """Flips, then shifts down by `dy` and right by `dx`, all in one gather.

    Args:
      images: uint8 [b, h, w, c]; 0 is black.
      flip: int32 [b], 1 to mirror left and right.
      dy: int32 [b], in [-MAX_SHIFT, MAX_SHIFT].
      dx: int32 [b], likewise.
    """
    batch, height, width, channels = images.shape
    border = [MAX_SHIFT, MAX_SHIFT]
    padded = tf.pad(images, [[0, 0], border, border, [0, 0]])
    padded_height, padded_width = height + 2 * MAX_SHIFT, width + 2 * MAX_SHIFT
    rows = tf.range(height) + MAX_SHIFT - dy[:, None]
    columns = tf.range(width) + MAX_SHIFT - dx[:, None]
    columns = tf.where(flip[:, None] == 1, padded_width - 1 - columns, columns)
    first = tf.range(batch) * padded_height
    flat = (first[:, None] + rows)[:, :, None] * padded_width + columns[:, None, :]
    return tf.gather(tf.reshape(padded, (-1, channels)), flat)


def _pipeline(columns, read, batch_size: int | None = None) -> tf.data.Dataset:
    """Rows of `columns`, batched where asked, through `read`, in order."""
    with tf.device("CPU:0"):
        dataset = tf.data.Dataset.from_tensor_slices(columns)
    if batch_size is not None:
        dataset = dataset.batch(batch_size)
    dataset = dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    options = tf.data.Options()
    # There are no files to divide among workers.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)
