"""Batches of a data set: shuffled and augmented for training, in order for evaluation.

    source = sources.load("fashion_mnist_mini")
    for inputs, labels in batching.training_batches(source, 128, seed=0, epoch=3):
        ...

What an epoch holds, and in which order, is a function of (seed, epoch) alone: it does
not depend on `tf.random.set_seed`, on earlier calls, or on the batch that a run resumed
from. `start_batch` costs nothing: the batches before it are never read.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from mp_loop.config import errors
from mp_loop.data import decoding, order, recipes, sources
from mp_loop.distributed import nests


def steps_per_epoch(source: sources.Source, batch_size: int) -> int:
    """Returns the number of whole training batches.

    Raises:
      DataError: `batch_size` is below 1 or above the number of examples.
    """
    count = len(source.train)
    if not 1 <= batch_size <= count:
        raise errors.DataError(
            f"`batch_size` ({batch_size}) must be between 1 and the {count} training "
            f"examples of '{source.name}'."
        )
    return count // batch_size


def training_batches(
    source: sources.Source,
    batch_size: int,
    seed: int,
    epoch: int,
    start_batch: int = 0,
    augment: str | recipes.Recipe = "none",
    context: tf.distribute.InputContext | None = None,
    raw: bool = False,
) -> tf.data.Dataset:
    """Returns one epoch of shuffled training batches, from `start_batch` on.

    With two random words for each position p, a function of (seed, epoch):

        order = argsort(word[:, 0])           # the example at position p
        flip, ... = fields of word[p, 1]      # its augmentation, see `recipes` for more
        batch k = positions k * batch_size ... (k + 1) * batch_size - 1

    Args:
      source: the data set.
      batch_size: examples in each batch; the remainder of the epoch is dropped.
      seed: at least 0, below 2**63.
      epoch: at least 0, below 2**63.
      start_batch: how many batches to leave out; the others are bitwise what they are
        in the whole epoch.
      augment: `none`; or a horizontal flip with probability 1/2, followed for
        `flip_shift` by a shift of up to 4 pixels in each direction (black moves in),
        for `flip_crop` by a crop of the same shape and of `MIN_CROP` to all of the
        area, resized; or a recipe, which can do more.
      context: of a worker under a strategy. A batch is then cut into equal parts, one
        for each replica, and only those of this worker are returned, one by one.
      raw: leaves to the step what `Source.prepare_in_step` does: images are uint8.

    Returns:
      A data set of (inputs [batch, ...], labels int64 [batch]); inputs as
      `Source.prepare` makes them, unless they are `raw`. Where a recipe mixes
      examples, labels are the share of each class, float32 [batch, classes]. Of a
      regression, they are float32 [batch, targets], standardized. Of texts that are
      packed, they are int32 [batch, length], and where some of them are padding there
      are weights as well, float32 of that shape: the weighted mean over a batch is
      that of what counts. Of masks they are int32 [batch, h, w], with weights where
      some pixels do not count.

    Raises:
      DataError: an argument is out of range.
    """
    context = context or tf.distribute.InputContext()
    recipe = recipes.Recipe(augment) if isinstance(augment, str) else augment
    _check(source, batch_size, recipe, context.num_replicas_in_sync)
    steps = steps_per_epoch(source, batch_size)
    _check_position(seed, epoch, start_batch, steps)
    words = order.random_words(len(source.train), seed, epoch)
    examples = order.shuffled(words)
    changes = recipe.changes(source, words, seed, epoch)
    whole = slice(0, steps * batch_size)
    weighed = _weighed(source.train, examples[whole], batch_size)
    drawn = [x[whole] for change in changes for x in change.drawn]
    columns = (examples[whole], *weighed, *drawn)
    taken = slice(start_batch * batch_size, None)
    columns = tuple(_share(x[taken], batch_size, context) for x in columns)
    prepared = _prepared(source, recipe, changes, len(weighed), raw)
    return _pipeline(source.train, columns, prepared)


def evaluation_batches(
    source: sources.Source, batch_size: int, raw: bool = False
) -> tf.data.Dataset:
    """Returns all test examples in stored order; the last batch may be smaller.

    Args:
      source: the data set.
      batch_size: examples in each batch but the last.
      raw: as for `training_batches`.

    Returns:
      A data set of (inputs, labels) as in `training_batches`, not augmented; weights
      are such that the weighted mean over all test examples is that of what counts.

    Raises:
      DataError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise errors.DataError(f"`batch_size` ({batch_size}) must be at least 1.")
    examples = np.arange(len(source.test))
    columns = (examples, *_weighed(source.test, examples, len(examples)))
    prepare = _prepare(source, raw)

    def prepared(inputs: tf.Tensor, labels: tf.Tensor, *weighed: tf.Tensor) -> tuple:
        labels = source.prepare_labels(labels)
        if source.masks is not None:
            return prepare(inputs), *source.of_pixels(labels, 1)
        return prepare(inputs), labels, *_weights(labels, *weighed)

    return _pipeline(source.test, columns, prepared, batch_size)


def why_unreadable(error: Exception) -> str:
    """Returns why an example could not be read, if an error says so; else ''.

    Args:
      error: what a step or an evaluation raised.
    """
    if not isinstance(error, tf.errors.OpError) or "IteratorGetNext" not in str(error):
        return ""
    # What TensorFlow says of a graph: where it was defined, then the reason.
    said = error.message.partition("\n\t [[")[0].strip().rpartition("\n")[2]
    said = re.sub(r"^.*with iterator: \S+ |^\{\{.*?\}\} ", "", said)
    return re.sub(r"^(\w+\.)*\w+Error: ", "", said)


def _prepare(source: sources.Source, raw: bool) -> Callable[[tf.Tensor], nests.Nest]:
    """What is done to a batch here, before a step has it."""
    in_step = raw and source.prepare_in_step is not None
    return source.middle if in_step else source.prepare


def _check(
    source: sources.Source, batch_size: int, recipe: recipes.Recipe, replicas: int
) -> None:
    """Refuses arguments that do not fit the data set, or each other."""
    steps_per_epoch(source, batch_size)
    if batch_size % replicas:
        raise errors.DataError(
            f"`batch_size` ({batch_size}) must be a multiple of the {replicas} "
            "replicas."
        )
    recipe.check(source, batch_size, replicas)


def _check_position(seed: int, epoch: int, start_batch: int, steps: int) -> None:
    """Refuses what is no place in the data of a run."""
    for argument, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value < 2**63:
            raise errors.DataError(f"`{argument}` ({value}) must be in [0, 2**63).")
    if not 0 <= start_batch <= steps:
        raise errors.DataError(
            f"`start_batch` ({start_batch}) must be between 0 and the {steps} batches "
            "of an epoch."
        )


def _prepared(
    source: sources.Source,
    recipe: recipes.Recipe,
    changes: Sequence[recipes.Change],
    weighed: int,
    raw: bool,
) -> Callable[..., tuple]:
    """Makes the function that changes and prepares a batch.

    Args:
      source: the data set.
      recipe: of the changes.
      changes: in order.
      weighed: how many columns are of `_weighed`; those of the changes follow.
      raw: as for `training_batches`.
    """
    prepare = _prepare(source, raw)
    moves = recipe.augment == "flip_shift"

    def prepared(inputs: tf.Tensor, labels: tf.Tensor, *columns: tf.Tensor) -> tuple:
        labels = source.prepare_labels(labels)
        weights = _weights(labels, *columns[:weighed])
        rest = iter(columns[weighed:])
        for change in changes:
            its = itertools.islice(rest, len(change.drawn))
            inputs, labels = change.apply(inputs, labels, *its)
        if source.masks is not None:
            return prepare(inputs), *source.of_pixels(labels, 0, may_ignore=moves)
        return prepare(inputs), labels, *weights

    return prepared


def _weighed(
    examples: sources.Examples, index: np.ndarray, group: int
) -> tuple[np.ndarray, ...]:
    """Says which labels count, and how much, where they do not all count alike.

    What counts has such a weight that the mean of weight * loss over all labels of a
    group is the mean loss of those that count, whatever parts the group is cut into.

    Args:
      examples: of a split.
      index: which of them, in order; a multiple of `group`.
      group: examples of which one mean is made.

    Returns:
      Nothing; or for each example how many of its labels count, int64, and what each
      of these weighs, float32.
    """
    if examples.counts is None:
        return ()
    counts = examples.counts[index]
    each = examples.length * group / counts.reshape(-1, group).sum(axis=1)
    return counts, np.repeat(each, group).astype(np.float32)


def _weights(labels: tf.Tensor, *weighed: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Makes sample weights, float32 [batch, length], of what `_weighed` returned."""
    if not weighed:
        return ()
    counts, each = weighed
    mask = tf.sequence_mask(counts, tf.shape(labels)[1], tf.float32)
    return (mask * each[:, tf.newaxis],)


def _share(
    column: np.ndarray, batch_size: int, context: tf.distribute.InputContext
) -> np.ndarray:
    """Cuts a column of whole batches into this worker's parts, [parts, part size]."""
    workers, replicas = context.num_input_pipelines, context.num_replicas_in_sync
    part = batch_size // replicas
    parts = column.reshape(-1, workers, replicas // workers, part)
    return parts[:, context.input_pipeline_id].reshape(-1, part)


def _pipeline(
    examples: sources.Examples,
    columns: tuple[np.ndarray, ...],
    prepared: Callable[..., tuple],
    batch_size: int | None = None,
) -> tf.data.Dataset:
    """Makes batches in order.

    Args:
      examples: of a split.
      columns: which of them, and what `prepared` takes besides, a number for each:
        [batches, batch], or [examples] with `batch_size`.
      prepared: of the inputs and labels of a batch, and the other columns.
      batch_size: examples in each batch but the last; None: they are batches.
    """
    with tf.device("CPU:0"):
        dataset = tf.data.Dataset.from_tensor_slices(columns)
    if batch_size is not None:
        dataset = dataset.batch(batch_size)
    if isinstance(examples, decoding.Split) and examples.not_held is not None:
        # One by one: a batch at a time would keep fewer cores busy.
        size = batch_size or columns[0].shape[1]
        with tf.device("CPU:0"):
            places = tf.data.Dataset.from_tensor_slices(columns[0].reshape(-1))
        away = examples.not_held, examples.labels_not_held
        read = tuple(
            x.rows(places).batch(size, drop_remainder=batch_size is None)
            for x in away
            if x is not None
        )

        @tf.autograph.experimental.do_not_convert
        def read_before(read: tuple, columns: tuple) -> tuple:
            index, *rest = columns
            images, *labels = read
            labels = labels or [examples.take_labels(index)]
            return prepared(images, *labels, *rest)

        dataset = tf.data.Dataset.zip((read, dataset))
        dataset = dataset.map(read_before, **decoding.PARALLEL)
    else:

        @tf.autograph.experimental.do_not_convert  # which takes half a second
        def taken(index: tf.Tensor, *rest: tf.Tensor) -> tuple:
            return prepared(*examples.take(index), *rest)

        dataset = dataset.map(taken, **decoding.PARALLEL)
    options = tf.data.Options()
    # To rewrite the graph, tf.data copies the data that are held.
    options.experimental_optimization.apply_default_optimizations = False
    # There are no files to divide among workers.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.DATA
    )
    return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)
