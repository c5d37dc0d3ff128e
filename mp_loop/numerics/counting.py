"""What becomes of a tensor's numbers in 16 bits, counted on the device.

    counts = magnitudes(tensor)               # int32 [BINS], eager or traced
    histogram.Histogram(counts.numpy())       # later, on the host

Magnitudes are read as bit patterns, because devices may flush subnormal numbers to
zero when they compare them, but not when they shift integers.
"""

from __future__ import annotations

import tensorflow as tf

from mp_loop.numerics import float_format, histogram


def magnitudes(tensor: tf.Tensor) -> tf.Tensor:
    """Counts the numbers of a tensor by magnitude.

    Args:
      tensor: float32, float16 or bfloat16, of any shape.

    Returns:
      int32 [histogram.BINS], for `histogram.Histogram`.

    Raises:
      ValueError: the tensor has another dtype.
    """
    bits = tf.reshape(_magnitude_bits(tensor), [-1])
    exponent = tf.bitwise.right_shift(bits, 23)
    significand = tf.bitwise.bitwise_and(bits, 0x7FFFFF)
    # A subnormal float32 is an integer multiple of 2^-149. That integer, as a float32,
    # is a normal number, and exact.
    shifted = tf.bitcast(tf.cast(significand, tf.float32), tf.int32)
    subnormal = exponent == 0
    exponent = tf.where(
        subnormal,
        tf.bitwise.right_shift(shifted, 23) - 127 + histogram.LEAST,
        exponent - 127,
    )
    significand = tf.where(
        subnormal, tf.bitwise.bitwise_and(shifted, 0x7FFFFF), significand
    )
    index = 1 + (exponent - histogram.LEAST) * len(histogram.CLASSES)
    for border in histogram.CLASSES[1:]:
        index += tf.cast(significand >= border, tf.int32)
    infinity = 0x7F800000
    index = tf.where(bits == 0, 0, index)
    index = tf.where(bits == infinity, histogram.INFINITE, index)
    index = tf.where(bits > infinity, histogram.INFINITE + 1, index)
    # Not tf.math.bincount, which has no deterministic kernel for GPUs.
    return tf.math.unsorted_segment_sum(tf.ones_like(index), index, histogram.BINS)


def nonfinite(tensor: tf.Tensor) -> tf.Tensor:
    """Counts infinities and NaNs.

    Args:
      tensor: float32, float16 or bfloat16, of any shape.

    Returns:
      int32 [2].
    """
    infinite = tf.math.count_nonzero(tf.math.is_inf(tensor), dtype=tf.int32)
    nan = tf.math.count_nonzero(tf.math.is_nan(tensor), dtype=tf.int32)
    return tf.stack([infinite, nan])


def largest(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the largest finite magnitude, float32 []; 0 without finite numbers."""
    bits = tf.reshape(_magnitude_bits(tensor), [-1])
    bits = tf.where(bits < 0x7F800000, bits, 0)
    return tf.bitcast(tf.reduce_max(tf.concat([bits, [0]], 0)), tf.float32)


def lost_updates(before: tf.Tensor, after: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Counts the updates that would be lost on a 16-bit weight.

    Args:
      before: float32 weights.
      after: float32, the weights after the update.
      dtype: float16 or bfloat16, of the imagined weights.

    Returns:
      int32 [3]: how many weights changed; how many of these changed by less than half
      a unit in the last place of a 16-bit significand (2^-11 of the weight in float16,
      2^-8 in bfloat16); and how many would not have changed if they were stored in 16
      bits, as `round(round(before) + (after - before))`.
    """
    update = after - before
    changed = update != 0
    half_unit = 2.0 ** -(float_format.FORMATS[dtype.name].mantissa_bits + 1)
    small = changed & (tf.abs(update) < half_unit * tf.abs(before))
    held = tf.cast(before, dtype)  # float32 -> 16 bits
    moved = tf.cast(tf.cast(held, tf.float32) + update, dtype)
    unseen = changed & (moved == held)
    counts = [
        tf.math.count_nonzero(x, dtype=tf.int32) for x in (changed, small, unseen)
    ]
    return tf.stack(counts)


def outcomes(
    tensor: tf.Tensor | tf.IndexedSlices | tf.Variable | None,
) -> dict[str, tf.Tensor] | None:
    """Counts what became of a tensor's numbers; None for integers and None."""
    if tensor is None:
        return None
    tensor = tf.convert_to_tensor(tensor)  # a sparse gradient, too
    if not tensor.dtype.is_floating:
        return None
    return {
        "size": tf.size(tensor),
        "nonfinite": nonfinite(tensor),
        "zeros": tf.math.count_nonzero(tensor == 0, dtype=tf.int32),
    }


def distribution(tensor: tf.Tensor | tf.IndexedSlices) -> dict[str, tf.Tensor]:
    """Counts the numbers of a float32 tensor by magnitude."""
    tensor = tf.convert_to_tensor(tensor)  # a sparse gradient, too
    return {
        "histogram": magnitudes(tensor),
        "largest": largest(tensor),
    }


def changes(old: tf.Tensor, new: tf.Tensor, dtype: tf.DType) -> dict[str, tf.Tensor]:
    """Measures what an update does to a weight, stored in float32 or in `dtype`."""
    return {
        "size": tf.size(old),
        "lost": lost_updates(old, new, dtype),
        "update_norm": tf.norm(new - old),
        "weight_norm": tf.norm(old),
    }


def _magnitude_bits(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the float32 bit patterns of the magnitudes, int32."""
    tensor = tf.convert_to_tensor(tensor)
    if tensor.dtype == tf.bfloat16:
        # The upper half of a float32, moved as integers: a cast might flush.
        half = tf.cast(tf.bitcast(tensor, tf.uint16), tf.int32)
        bits = tf.bitwise.left_shift(half, 16)
    elif tensor.dtype in (tf.float16, tf.float32):
        # Every float16 is a normal float32.
        bits = tf.bitcast(tf.cast(tensor, tf.float32), tf.int32)
    else:
        raise ValueError(
            f"`tensor` ({tensor.dtype.name}) must be float32, float16 or bfloat16."
        )
    return tf.bitwise.bitwise_and(bits, 0x7FFFFFFF)
