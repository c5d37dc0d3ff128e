"""The order of an epoch."""

import numpy as np

from mp_loop.data import batching, order
from tests.support import data_sets


def test_order_is_pinned():
    # A run resumes with another version of this program only if this stays.
    seen = data_sets.labels(
        batching.training_batches(data_sets.source(12), 12, seed=5, epoch=3)
    )
    assert seen == [[5, 0, 2, 4, 10, 8, 9, 6, 11, 7, 3, 1]]


def test_order_has_no_structure():
    # The differences of neighbours are uniform: chi-square with 59 degrees of
    # freedom has mean 59, deviation 11 (index_shuffle gives more than 4000).
    count = 60_000
    shuffled = order.shuffled(order.random_words(count, 0, 1))
    found, _ = np.histogram(np.diff(shuffled) % count, 60, (0, count))
    assert np.sum((found - found.mean()) ** 2 / found.mean()) < 59 + 5 * 11
