"""Which examples are held out: a function of each one's name alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mp_loop.config import errors

if TYPE_CHECKING:  # It takes seconds to import.
    import tensorflow_datasets as tfds

TRAIN = "train"
# Names of what holds the examples to evaluate on, the first of them being the split's.
TEST = ("test", "validation", "val", "valid")


def check_name(dataset: str, split: str) -> None:
    """Refuses a split that local data do not have; raises DataError."""
    if split not in (TRAIN, TEST[0]):
        raise errors.DataError(
            f"Data set '{dataset}' has the splits train and test, not '{split}'."
        )


def is_held_out(name: str, fraction: float) -> bool:
    """Tells whether an example is for evaluation.

    It depends on no other example, so that a new one moves none from one side to the
    other, and with a larger fraction those that were held out still are.

    Args:
      name: of the example, unique in its data set.
      fraction: in [0, 1]; about this share of all examples is held out.
    """
    digest = hashlib.sha256(os.fsencode(name)).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def held_out(names: Iterable[str], fraction: float) -> np.ndarray:
    """Tells of all examples of a data set which are for evaluation, bool [n].

    Args:
      names: of the examples, in order.
      fraction: see `is_held_out`.
    """
    return np.fromiter((is_held_out(name, fraction) for name in names), bool)


def of_tfds(name: str, splits: Mapping[str, tfds.core.SplitInfo]) -> str:
    """Returns the name of the split to evaluate on.

    Raises:
      DataError: it, or `train`, is missing or has no example.
    """
    test_split = "test" if "test" in splits else "validation"
    for split in ("train", test_split):
        if split not in splits or not splits[split].num_examples:
            raise errors.DataError(
                f"Data set '{name}' has the splits {sorted(splits)}; 'train' and "
                "'test' or 'validation', with examples, are needed."
            )
    return test_split
