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
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from mp_loop.config import choices, sections

EMBEDDED = ("fashion_mnist_mini",)
MAX_DECODED_BYTES = 4 * 2**30
MAX_SHIFT = 4
MIN_CROP = 0.5  # of the image's area

# Where TFDS keeps prepared data sets: if not even this host answers, there is no
# network. TFDS itself would retry for more than three minutes.
_PROBE_ADDRESS = ("storage.googleapis.com", 443)
_PROBE_SECONDS = 5.0


class DataError(ValueError):
    """A data set that cannot be used; the message is one line."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Decoded examples.

    Attributes:
      inputs: images, uint8 [n, h, w, c], not smaller than those that a model gets,
        or tokens, int32 [n, length].
      labels: int64 [n].
    """

    inputs: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def _on_host(self) -> tf.Tensor:
        # One copy for all epochs. Named, or TF would put it on a GPU.
        with tf.device("CPU:0"):
            return tf.convert_to_tensor(self.inputs)


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A data set in memory.

    Attributes:
      name: the name it was asked for by.
      train: the training examples.
      test: the examples of the split `test`, or `validation` without one.
      num_classes: labels are in [0, num_classes).
      input_shape: (h, w, c) of the images that a model gets: those in the middle of
        what is held; (length,) of texts.
      class_names: one name for each class.
      mean: float64 [c], of pixel / 255 over the training examples; [0] for texts.
      std: float64 [c], likewise (population); 1 for a constant channel.
      preprocess: what makes a model's inputs of pixels, float32 [b, h, w, c] in
        [0, 255] both; None: (pixel / 255 - mean) / std.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    preprocess: Callable[[tf.Tensor], tf.Tensor] | None = None

    @property
    def is_text(self) -> bool:
        """Whether the inputs are tokens."""
        return len(self.input_shape) == 1

    def prepare(self, inputs: tf.Tensor) -> tf.Tensor:
        """Makes a model's inputs: float32 of pixels, int32 tokens as they are."""
        if self.is_text:
            return inputs
        height, width, _ = self.input_shape
        top = (inputs.shape[1] - height) // 2
        left = (inputs.shape[2] - width) // 2
        middle = inputs[:, top : top + height, left : left + width]
        pixels = tf.cast(middle, tf.float32)
        if self.preprocess is not None:
            return self.preprocess(pixels)
        scale, offset = 1 / (255 * self.std), -self.mean / self.std
        return pixels * scale.astype(np.float32) + offset.astype(np.float32)


def load(
    name: str,
    data_dir: str = "",
    image_size: int = 0,
    crop_pct: float = 1.0,
    tokenize: Callable[[Sequence[bytes]], np.ndarray] | None = None,
) -> Source:
    """Reads a TFDS data set of images, or texts, and labels into memory.

    A data set that is not in `data_dir` is downloaded there by TFDS.

    Args:
      name: `fashion_mnist_mini` (in the package), or what `tfds.load` takes:
        `cifar10`, `cifar10:3.0.2`, or the name of a folder in `data_dir` that
        TFDS can read without builder code.
      data_dir: TFDS's folder; empty is TFDS's default.
      image_size: of each image the largest square in the middle is taken, and
        resized so that its own middle, `crop_pct` of its side, has this side; 0:
        images stay as they are.
      crop_pct: in (0, 1]. Models get that middle, as is the custom for ImageNet
        (0.875), or a random part of the whole (`flip_crop`).
      tokenize: makes tokens, int32 [n, length], of n texts in UTF-8; None: the data
        set must hold images.

    Returns:
      All examples of both splits, in stored order.

    Raises:
      DataError: unknown or missing data set, unreadable files, features that are
        not an 8-bit image (or a text) and a class label, images of unequal size
        without `image_size`, or more than `MAX_DECODED_BYTES` of pixels.
    """
    builder = _prepared_builder(name, data_dir)
    feature, label = _feature_names(name, builder.info, text=tokenize is not None)
    if tokenize is not None:
        convert, at_once = tokenize, 1024
    elif image_size:
        whole = round(image_size / crop_pct)
        convert, at_once = functools.partial(_resized, size=whole), 1
    else:
        # Images whose size is not declared are compared one by one.
        declared = None not in builder.info.features[feature].shape
        convert, at_once = _as_they_are, 256 if declared else 1
    splits = builder.info.splits
    test_name = "test" if "test" in splits else "validation"
    for split in ("train", test_name):
        if split not in splits or not splits[split].num_examples:
            raise DataError(
                f"Data set '{name}' has the splits {sorted(splits)}; 'train' and "
                "'test' or 'validation', with examples, are needed."
            )
    decode = functools.partial(_decode, name, builder, feature, label, convert, at_once)
    train = decode("train", None)
    test = decode(test_name, train)
    mean = std = np.empty(0)
    if tokenize is None:
        mean, std = _moments(train.inputs)
    shape = train.inputs.shape[1:]
    if image_size and tokenize is None:
        shape = (image_size, image_size, shape[-1])
    return Source(
        name=name,
        train=train,
        test=test,
        num_classes=builder.info.features[label].num_classes,
        input_shape=shape,
        class_names=tuple(builder.info.features[label].names),
        mean=mean,
        std=std,
    )


def from_settings(
    data: sections.Data,
    tokenize: Callable[[Sequence[bytes]], np.ndarray] | None = None,
) -> Source:
    """Loads the data set that settings describe; see `load`."""
    return load(data.dataset, data.data_dir, data.image_size, data.crop_pct, tokenize)


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
        flip, ... = fields of word[p, 1]      # its augmentation
        batch k = positions k * batch_size ... (k + 1) * batch_size - 1

    so (seed, epoch) and (epoch, seed) differ, and nothing else matters.

    Args:
      source: what `load` returned.
      batch_size: examples in each batch; the remainder of the epoch is dropped.
      seed: at least 0, below 2**63.
      epoch: at least 0, below 2**63.
      start_batch: batches to leave out; the others are bitwise what they are in
        the whole epoch.
      augment: `none`; or a horizontal flip with probability 1/2 and then, for
        `flip_shift`, a shift by up to `MAX_SHIFT` pixels in each direction, black
        moved in, or, for `flip_crop`, a part of the image, of its shape and of
        `MIN_CROP` to all of its area, resized.
      worker: only the share of this one of `workers` is read.
      workers: each of them has a share of every batch.
      replicas: equal parts that a batch is cut into; a worker's follow each other.

    Returns:
      A data set of (inputs [batch_size / replicas, ...], labels int64 [batch_size /
      replicas]); inputs as `Source.prepare` makes them.

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
    if augment not in choices.AUGMENTATIONS:
        raise DataError(
            f"`augment` ('{augment}') must be one of {choices.AUGMENTATIONS}."
        )
    if augment != "none" and source.is_text:
        raise DataError(f"`augment` ('{augment}') is for images, not texts.")
    if batch_size % replicas:
        raise DataError(
            f"`batch_size` ({batch_size}) must be a multiple of the {replicas} "
            "replicas."
        )

    words = _random_words(len(source.train), seed, epoch)
    order = np.argsort(words[:, 0], kind="stable")
    drawn, change = _AUGMENTED[augment]
    if augment == "flip_crop":
        change = functools.partial(change, size=source.input_shape[:2])
    taken = slice(start_batch * batch_size, steps * batch_size)
    share = batch_size // replicas
    columns = tuple(
        column[taken].reshape(-1, workers, replicas // workers, share)[:, worker]
        for column in (order, source.train.labels[order], *drawn(words[:, 1]))
    )
    columns = tuple(column.reshape(-1, share) for column in columns)
    inputs = source.train._on_host

    def read(index: tf.Tensor, labels: tf.Tensor, *drawn: tf.Tensor) -> tuple:
        return source.prepare(change(tf.gather(inputs, index), *drawn)), labels

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
    inputs = source.test._on_host

    def read(index, labels):
        return source.prepare(tf.gather(inputs, index)), labels

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
    if not has_network(_PROBE_ADDRESS):
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


def has_network(address: tuple[str, int]) -> bool:
    """Whether a download can begin: at once where libraries retry for minutes.

    Args:
      address: host and port that answer then, unless there is a proxy.
    """
    if {"http", "https", "all"} & set(urllib.request.getproxies()):
        return True
    try:
        socket.create_connection(address, timeout=_PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _feature_names(
    name: str, info: tfds.core.DatasetInfo, text: bool
) -> tuple[str, str]:
    features = info.features
    known = dict(features.items()) if hasattr(features, "items") else {}
    keys = info.supervised_keys
    if not (keys and len(keys) == 2 and all(isinstance(key, str) for key in keys)):
        kind = tfds.features.Text if text else tfds.features.Image
        found = [key for key, value in known.items() if isinstance(value, kind)]
        keys = (found[0] if len(found) == 1 else "text" if text else "image", "label")
    first, label = (known.get(key) for key in keys)
    if text:
        fits = isinstance(first, tfds.features.Text)
    else:
        fits = isinstance(first, tfds.features.Image) and first.np_dtype == np.uint8
    labelled = isinstance(label, tfds.features.ClassLabel) and label.num_classes
    if fits and labelled:
        return keys
    found = {key: type(value).__name__ for key, value in known.items()}
    wanted = "a Text" if text else "an 8-bit Image"
    hint = "; texts need a --model of keras_hub" if "Text" in found.values() else ""
    raise DataError(
        _line(
            f"Data set '{name}' must have {wanted} and a ClassLabel",
            f"it has {found or features}{'' if text else hint}",
        )
    )


def _as_they_are(pixels: np.ndarray) -> np.ndarray:
    return pixels


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """The largest squares in the middle, resized; uint8 [b, size, size, c]."""
    height, width = pixels.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[:, top : top + side, left : left + side]
    if side == size:
        return square
    resized = tf.image.resize(square, (size, size), antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(resized, 0, 255)), tf.uint8).numpy()


def _decode(
    name: str,
    builder: tfds.core.DatasetBuilder,
    feature: str,
    label: str,
    convert: Callable[[np.ndarray], np.ndarray],
    at_once: int,
    split: str,
    like: Split | None,
) -> Split:
    """Decodes one split in stored order; `like` gives the shape it must have."""
    info = builder.info
    count = info.splits[split].num_examples
    used = 0 if like is None else like.inputs.nbytes
    inputs, filled = None, 0
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
                {feature: info.features[feature], label: info.features[label]}
            ),
        )
        for batch in examples.batch(at_once).as_numpy_iterator():
            values = convert(batch[feature])
            if inputs is None:
                shape = values.shape[1:]
                if like is not None:
                    shape = like.inputs.shape[1:]
                total = used + count * int(np.prod(shape)) * values.itemsize
                if total > MAX_DECODED_BYTES:
                    raise DataError(
                        f"Data set '{name}' takes {total / 2**30:.1f} GiB decoded; at "
                        f"most {MAX_DECODED_BYTES / 2**30:.3g} GiB fit: it is held in "
                        "memory, streaming from disk is not there yet."
                    )
                inputs = np.empty((count, *shape), values.dtype)
            if values.shape[1:] != inputs.shape[1:]:
                raise DataError(
                    f"Data set '{name}' has images of unequal size: "
                    f"{inputs.shape[1:]} and {values.shape[1:]}; --image_size makes "
                    "them equal."
                )
            inputs[filled : filled + len(values)] = values
            labels[filled : filled + len(values)] = batch[label]
            filled += len(values)
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
    return Split(inputs, labels)


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


def _no_draw(word: np.ndarray) -> tuple[np.ndarray, ...]:
    return ()


def _drawn_shift(word: np.ndarray) -> tuple[np.ndarray, ...]:
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


def _drawn_crop(word: np.ndarray) -> tuple[np.ndarray, ...]:
    """Flip in {0, 1}, int32; area in [MIN_CROP, 1], y and x in [0, 1], float32."""
    bits = word.view(np.uint64)
    flip = bits & np.uint64(1)
    fields = [bits >> np.uint64(shift) & np.uint64(2**21 - 1) for shift in (1, 22, 43)]
    area, y, x = (field.astype(np.float32) / np.float32(2**21 - 1) for field in fields)
    return flip.astype(np.int32), MIN_CROP + (1 - MIN_CROP) * area, y, x


def _unchanged(images: tf.Tensor) -> tf.Tensor:
    return images


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


def _flip_crop(
    images: tf.Tensor,
    flip: tf.Tensor,
    area: tf.Tensor,
    y: tf.Tensor,
    x: tf.Tensor,
    size: tuple[int, int],
) -> tf.Tensor:
    """Takes a part of each image, flipped or not, and resizes it bilinearly.

    Args:
      images: uint8 [b, h, w, c].
      flip: int32 [b], 1 to mirror left and right.
      area: float32 [b], share of the image, in (0, 1].
      y: float32 [b], where the part is: from 0, at the top, to 1, at the bottom.
      x: float32 [b], likewise from left to right.
      size: height and width of what is returned.

    Returns:
      float32 [b, *size, c], in [0, 255].
    """
    side = tf.sqrt(area)
    top, left = y * (1 - side), x * (1 - side)
    right = left + side
    left, right = tf.where(flip == 1, right, left), tf.where(flip == 1, left, right)
    boxes = tf.stack([top, left, top + side, right], axis=1)
    return tf.image.crop_and_resize(images, boxes, tf.range(images.shape[0]), size)


# What is drawn for each position, and what is done with it.
_AUGMENTED = {
    "none": (_no_draw, _unchanged),
    "flip_shift": (_drawn_shift, _flip_shift),
    "flip_crop": (_drawn_crop, _flip_crop),
}


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
