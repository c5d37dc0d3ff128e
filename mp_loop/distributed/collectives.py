"""Sums and copies over all replicas, exact to the bit; called on every replica.

A sum is the one exchange that every strategy offers. So the first replica's value
reaches the others as a sum to which they add zeros; and it travels as integers,
which keep -0.0, subnormal numbers and the payload of a NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from mp_loop.distributed import nests

# Of one message. Left to itself, TensorFlow makes one of all gradients, which waits for
# the whole backward pass; these wait for their own gradients, the last layers' first.
_BYTES = 8 * 2**20
_INTEGER_OF_SIZE = {2: tf.int16, 4: tf.int32, 8: tf.int64}


def all_sum(value: nests.Nest) -> nests.Nest:
    """Adds up a tensor, or each of a structure of tensors, over all replicas."""
    replica = tf.distribute.get_replica_context()
    options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=_BYTES)
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, value, options)


def count(flags: tf.Tensor) -> tf.Tensor:
    """Counts the replicas on which each flag is set; int64, of the shape of `flags`."""
    return all_sum(tf.cast(flags, tf.int64))


def count_differing(values: Sequence[tf.Tensor | tf.Variable]) -> tf.Tensor:
    """Counts the replicas whose value is not the first replica's; int64 [values]."""
    fingerprints = tf.stack([fingerprint(value) for value in values])
    return count(tf.not_equal(_of_first(fingerprints), fingerprints))


def assign_from_first(variables: Sequence[tf.Variable]) -> None:
    """Assigns the first replica's value to every variable, bit for bit."""
    for variable in variables:
        variable.assign(from_bits(_of_first(to_bits(variable)), variable.dtype))


def _of_first(value: tf.Tensor) -> tf.Tensor:
    """Returns the first replica's integers on all of them."""
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return all_sum(tf.where(tf.equal(replica, 0), value, tf.zeros_like(value)))


def to_bits(value: tf.Tensor | tf.Variable) -> tf.Tensor:
    """Returns the bits of numbers as int64, which every all-reduce adds exactly."""
    value = tf.convert_to_tensor(value)
    if value.dtype.is_floating:
        value = tf.bitcast(value, _INTEGER_OF_SIZE[value.dtype.size])
    return tf.cast(value, tf.int64)


def from_bits(bits: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns the numbers of type `dtype` that `to_bits` was given."""
    if not dtype.is_floating:
        return tf.cast(bits, dtype)
    return tf.bitcast(tf.cast(bits, _INTEGER_OF_SIZE[dtype.size]), dtype)


def fingerprint(value: tf.Tensor | tf.Variable) -> tf.Tensor:
    """Adds up the bits, each number times an odd one of its own; int64 []."""
    bits = tf.reshape(to_bits(value), [-1])
    return tf.reduce_sum(bits * (2 * tf.range(tf.size(bits, tf.int64)) + 1))
