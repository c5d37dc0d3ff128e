"""Random numbers of an epoch, as a function of seed and epoch alone.

They do not depend on `tf.random.set_seed`, nor on any earlier call.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def random_words(count: int, seed: int, epoch: int) -> np.ndarray:
    """Draws two words for each position of an epoch.

    They are one Philox stream of the key (seed, epoch), so that (seed, epoch) and
    (epoch, seed) differ.

    Args:
      count: the number of positions.
      seed: at least 0, below 2**63.
      epoch: at least 0, below 2**63.

    Returns:
      int64 [count, 2].
    """
    # `tf.random.experimental.index_shuffle` would need less memory, but it uses only
    # 32 bits of the seed, and its neighbours are correlated.
    with tf.device("CPU:0"):
        return tf.random.stateless_uniform(
            (count, 2),
            seed=tf.constant([seed, epoch], tf.int64),
            minval=None,
            maxval=None,
            dtype=tf.int64,
            alg="philox",
        ).numpy()


def generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    """Makes a generator of an epoch, for what `random_words` is not drawn for.

    Args:
      seed: as above.
      epoch: as above.
      purpose: a number; each has random numbers of its own.
    """
    return np.random.default_rng([seed, epoch, purpose])


def shuffled(words: np.ndarray) -> np.ndarray:
    """Returns the order of an epoch, int64 [count]: the example at each position."""
    return np.argsort(words[:, 0], kind="stable")
