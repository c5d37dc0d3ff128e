"""Masks: for each pixel of an image the number of its class.

    made = assemble(data, (train, test), bad, hint)
    made.train.labels        # uint8 [n, h, w], class numbers; IGNORED does not count
    made.mask_values         # the number in the user's masks of each class

The classes are the numbers that there are to train on, in order: 0 and 255 are two
classes. `prepare` makes of stored masks what a loss takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from mp_loop.config import errors, sections
from mp_loop.data import bad_examples, classes, decoding

IGNORED = 255
"""The class number of pixels that count in neither loss nor metric."""
MOST_CLASSES = 255


@dataclasses.dataclass(frozen=True)
class Masks:
    """What the labels of a segmentation are.

    Attributes:
      values: the number in the user's masks of each class.
      weights: of pixels that count, to train and to evaluate on; the mean of weight *
        loss over all pixels of a split is then that of those that count.
    """

    values: tuple[int, ...]
    weights: tuple[float, float]

    def numbers(self, labels: np.ndarray) -> np.ndarray:
        """Returns what the user's masks hold, int16; -1 where pixels are ignored."""
        table = np.full(IGNORED + 1, -1, np.int16)  # 255 may be a class
        table[: len(self.values)] = self.values
        return table[labels]


class NotHeld(decoding.NotHeld, Protocol):
    """Masks that are not in memory; see `file_masks`.

    Attributes:
      counts: int64 [256], how many pixels have each number.
      middle_counts: likewise, of those that count in an evaluation.
    """

    counts: np.ndarray
    middle_counts: np.ndarray

    def renumbered(self, numbers: np.ndarray) -> NotHeld:
        """Returns the same with other numbers; see `renumbered`."""


def counts(
    labels: np.ndarray | NotHeld,
    middle: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Counts the pixels of each number, int64 [256].

    Args:
      labels: masks, uint8 [n, h, w].
      middle: cuts out of them what counts in an evaluation; None: all does.
    """
    if not isinstance(labels, np.ndarray):
        return labels.counts if middle is None else labels.middle_counts
    labels = labels if middle is None else middle(labels)
    return decoding.pixel_counts(labels[..., np.newaxis])[0]


def renumbered(
    labels: np.ndarray | NotHeld, numbers: np.ndarray
) -> np.ndarray | NotHeld:
    """Gives pixels other numbers: `numbers`, uint8 [256], holds that of each."""
    if isinstance(labels, np.ndarray):
        return numbers[labels]
    return labels.renumbered(numbers)


def weight(counts: np.ndarray) -> float:
    """Returns the weight of pixels that count, see `Masks`, of the count of each."""
    return float(counts.sum() / max(1, counts.sum() - counts[IGNORED]))


def prepare(labels: tf.Tensor, weight: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Makes what a loss takes.

    Args:
      labels: as they are stored, uint8 [b, h, w].
      weight: of pixels that count.

    Returns:
      Class numbers, int32 [b, h, w], 0 where they are ignored; and weights, float32
      [b, h, w], 0 there.
    """
    counts = labels != IGNORED
    numbers = tf.where(counts, tf.cast(labels, tf.int32), 0)
    return numbers, tf.cast(counts, tf.float32) * weight


def resized(labels: np.ndarray, size: int) -> np.ndarray:
    """Does to masks, uint8 [n, h, w], what `resizing.resized` does to images.

    Each pixel is that of the nearest one.
    """
    height, width = labels.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    # The middle of each pixel lies in one of the square.
    places = ((np.arange(size) + 0.5) * (side / size)).astype(np.int64)
    return labels[:, (top + places)[:, np.newaxis], left + places]


def assemble(
    data: sections.Data,
    parts: tuple[classes.Part, classes.Part],
    bad: list[str],
    hint: str,
    class_names: Sequence[str] | None = None,
) -> decoding.Labelled:
    """Numbers the classes that there are to train on, in order.

    Args:
      data: `dataset`, `ignore_label`, `validation_fraction` and `skip_bad_examples` are
        read.
      parts: to train and to evaluate on; labels are what masks hold, uint8 [n, h, w].
      bad: what was left out until here; is told, see `bad_examples.settle`.
      hint: how a user gives examples to evaluate on.
      class_names: of the numbers 0, 1, ...; None: numbers are their own names.

    Raises:
      DataError: what is bad is not to be left out, there are fewer than two classes,
        or there is nothing to evaluate on.
    """
    found = [_not_ignored(part.labels, data.ignore_label) for part in parts]
    known = np.flatnonzero(found[0])
    names = list(map(str, range(IGNORED + 1))) if class_names is None else class_names
    used = np.flatnonzero(found[0] + found[1])
    if len(used) and used[-1] >= len(names):
        raise errors.DataError(
            f"Data set '{data.dataset}' has masks with the number {used[-1]}; with "
            f"class_names they must be in [0, {len(names)}), or --ignore_label."
        )
    wanted = used if class_names is None else range(len(names))
    for number in sorted(set(wanted) - set(known)):
        count = found[1][number]
        more = f", but {count} to evaluate on" if count else ""
        bad.append(f"class {names[number]}: no pixel to train on{more}")
    bad_examples.settle(data.dataset, bad, data.skip_bad_examples)
    if not 2 <= len(known) <= MOST_CLASSES:
        raise errors.DataError(
            f"Data set '{data.dataset}' has masks of {len(known)} class(es) to train "
            f"on; 2 to {MOST_CLASSES} can be learned."
        )
    train, test = (len(part.labels) for part in parts)
    classes.check_evaluation(data, train, test, hint)
    if not found[1][known].any():
        raise errors.DataError(
            f"Data set '{data.dataset}' has no pixel of a class to evaluate on."
        )
    numbers = np.full(IGNORED + 1, IGNORED, np.uint8)
    numbers[known] = np.arange(len(known))
    splits = [
        decoding.Split(part.inputs, renumbered(part.labels, numbers), part.names)
        for part in parts
    ]
    return decoding.Labelled(
        *splits,
        tuple(names[number] for number in known),
        mask_values=tuple(known.tolist()),
    )


def _not_ignored(labels: np.ndarray | NotHeld, ignored: int) -> np.ndarray:
    """Counts the pixels of each number that is not ignored, int64 [256]."""
    found = counts(labels).copy()
    if ignored >= 0:
        found[ignored] = 0
    return found
