"""What 16 bits do to the numbers of a tensor: counted on the device, exactly.

    counts = histogram(tensor)                # int32 [BINS], eager or traced
    numbers = Numbers(counts.numpy())         # later, on the host
    numbers.underflows(FLOAT16)               # how many would become 0
    numbers.underflows(FLOAT16, 15)           # how many, times a scale of 2^15
    numbers.scales(FLOAT16, share=0.01)       # (from, to), as powers of two

One histogram answers every question, for every loss scale that is a power of
two. It counts the elements of each binary exponent in four classes of the
significand, at whose borders rounding to 16 bits changes its mind. Magnitudes
are read as bit patterns: devices may flush subnormal numbers to zero before
they compare them, but not while they shift integers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# Of float32, subnormal numbers included: 2^-149 to 2^127.
_LEAST, _MOST = -149, 127
# Where the classes of the significand begin, in units of its last bit: a power of
# two itself; what is above it; what bfloat16, and what float16, rounds to the next
# power of two when the exponent is its largest.
_CLASSES = (0, 1, 0x7F8000, 0x7FF000)
_INFINITE = 1 + (_MOST - _LEAST + 1) * len(_CLASSES)

BINS = _INFINITE + 2  # zeros, each exponent's classes, infinities, NaNs


@dataclasses.dataclass(frozen=True)
class Format:
    """A binary floating-point format with rounding to the nearest, ties to even.

    Attributes:
      name: of the dtype.
      bits: of the significand, the leading one included.
      tiny: exponent of the smallest positive number, a subnormal one.
      normal: exponent of the smallest normal number.
      largest: exponent of the largest number.
    """

    name: str
    bits: int
    tiny: int
    normal: int
    largest: int

    @property
    def max(self) -> float:
        """The largest finite number: 65504 for float16."""
        return math.ldexp(2.0 - 2.0 ** (1 - self.bits), self.largest)


FLOAT16 = Format("float16", bits=11, tiny=-24, normal=-14, largest=15)
BFLOAT16 = Format("bfloat16", bits=8, tiny=-133, normal=-126, largest=127)
FORMATS = {"float16": FLOAT16, "bfloat16": BFLOAT16}


def histogram(tensor: tf.Tensor) -> tf.Tensor:
    """Counts the elements of a tensor by magnitude.

    Args:
      tensor: float32, float16 or bfloat16, of any shape.

    Returns:
      int32 [BINS], for `Numbers`.

    Raises:
      ValueError: another dtype.
    """
    bits = tf.reshape(_magnitude_bits(tensor), [-1])
    exponent = tf.bitwise.right_shift(bits, 23)
    significand = tf.bitwise.bitwise_and(bits, 0x7FFFFF)
    # A subnormal float32 is an integer multiple of 2^-149. As a float32 that integer
    # is normal, and exact.
    shifted = tf.bitcast(tf.cast(significand, tf.float32), tf.int32)
    subnormal = exponent == 0
    exponent = tf.where(
        subnormal,
        tf.bitwise.right_shift(shifted, 23) - 127 + _LEAST,
        exponent - 127,
    )
    significand = tf.where(
        subnormal, tf.bitwise.bitwise_and(shifted, 0x7FFFFF), significand
    )
    index = 1 + (exponent - _LEAST) * len(_CLASSES)
    for border in _CLASSES[1:]:
        index += tf.cast(significand >= border, tf.int32)
    infinity = 0x7F800000
    index = tf.where(bits == 0, 0, index)
    index = tf.where(bits == infinity, _INFINITE, index)
    index = tf.where(bits > infinity, _INFINITE + 1, index)
    # Not bincount, which has no deterministic kernel for GPUs.
    return tf.math.unsorted_segment_sum(tf.ones_like(index), index, BINS)


def not_finite(tensor: tf.Tensor) -> tf.Tensor:
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
    """Returns the largest finite magnitude, float32 []; 0 if there is none."""
    bits = tf.reshape(_magnitude_bits(tensor), [-1])
    bits = tf.where(bits < 0x7F800000, bits, 0)
    return tf.bitcast(tf.reduce_max(tf.concat([bits, [0]], 0)), tf.float32)


def lost_updates(before: tf.Tensor, after: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Counts the updates that a 16-bit weight would not feel.

    Args:
      before: float32 weights.
      after: float32, the weights after the update.
      dtype: float16 or bfloat16, of the imagined weights.

    Returns:
      int32 [3]: how many weights changed; how many of these by less than half a
      unit in the last place of a 16-bit significand, which is 2^-bits of the
      weight (2^-11 in float16, 2^-8 in bfloat16); how many of them a weight
      held in 16 bits, `round(round(before) + (after - before))`, would not show.
    """
    update = after - before
    changed = update != 0
    half_unit = 2.0 ** -FORMATS[dtype.name].bits
    small = changed & (tf.abs(update) < half_unit * tf.abs(before))
    held = tf.cast(before, dtype)  # float32 -> 16 bits
    moved = tf.cast(tf.cast(held, tf.float32) + update, dtype)
    unseen = changed & (moved == held)
    counts = [
        tf.math.count_nonzero(x, dtype=tf.int32) for x in (changed, small, unseen)
    ]
    return tf.stack(counts)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The histogram of a tensor, and what follows from it.

    Scales are powers of two, given as exponents: `scale=15` is 2^15.

    Attributes:
      counts: integers [BINS], from `histogram`, or the sum of several.
    """

    counts: np.ndarray

    @property
    def count(self) -> int:
        """How many elements there are."""
        return int(self.counts.sum())

    @property
    def zeros(self) -> int:
        """How many are 0."""
        return int(self.counts[0])

    @property
    def inf(self) -> int:
        """How many are infinite."""
        return int(self.counts[_INFINITE])

    @property
    def nan(self) -> int:
        """How many are not a number."""
        return int(self.counts[_INFINITE + 1])

    @property
    def nonzero(self) -> int:
        """How many are finite and not 0."""
        return int(self._classes.sum())

    @property
    def exponents(self) -> dict[int, int]:
        """How many have the magnitude 2^e to 2^(e+1), for every such e."""
        sums = self._classes.sum(axis=1)
        return {int(i) + _LEAST: int(sums[i]) for i in np.flatnonzero(sums)}

    def underflows(self, kind: Format, scale: int = 0) -> int:
        """How many of the nonzero elements, times the scale, round to 0."""
        # Half the smallest number is a tie, and 0 is even.
        border = kind.tiny - 1 - scale
        return self._below(border) + self._of_class(border, 0)

    def subnormals(self, kind: Format, scale: int = 0) -> int:
        """How many are kept with fewer bits: below the smallest normal number."""
        return self._below(kind.normal - scale) - self.underflows(kind, scale)

    def overflows(self, kind: Format, scale: int = 0) -> int:
        """How many of the finite elements, times the scale, round to infinity."""
        border = kind.largest - scale
        # The tie between the largest number and the next power of two is even.
        ties = _CLASSES.index(2**23 - 2 ** (23 - kind.bits))
        above = self.nonzero - self._below(border + 1)
        return above + sum(self._of_class(border, c) for c in range(ties, 4))

    def scales(self, kind: Format, share: float) -> tuple[int, int] | None:
        """Finds the loss scales that suit these gradients.

        Args:
          kind: what they will be stored in.
          share: of the nonzero elements, how many may become 0.

        Returns:
          The smallest scale at which less than `share` of the nonzero elements
          underflow, and the largest at which none overflows: a range, empty where
          the first exceeds the second. None where there are no such elements.
        """
        if not self.nonzero:
            return None
        exponents = self.exponents
        most = kind.largest - max(exponents) + 1
        while self.overflows(kind, most):
            most -= 1
        least = kind.tiny - 1 - max(exponents)
        while self.underflows(kind, least) >= share * self.nonzero:
            least += 1
        return least, most

    @property
    def _classes(self) -> np.ndarray:
        return np.asarray(self.counts)[1:_INFINITE].reshape(-1, len(_CLASSES))

    def _below(self, exponent: int) -> int:
        """How many nonzero elements are smaller than 2^exponent."""
        return int(self._classes[: max(exponent - _LEAST, 0)].sum())

    def _of_class(self, exponent: int, kind: int) -> int:
        inside = _LEAST <= exponent <= _MOST
        return int(self._classes[exponent - _LEAST, kind]) if inside else 0


def headroom(magnitude: float, kind: Format, scale: float = 1.0) -> float:
    """How often a magnitude times the scale could double before it is too large.

    Args:
      magnitude: the largest of a tensor, finite.
      kind: the format; 65504 is the largest number of float16.
      scale: the loss scale.

    Returns:
      log2(max / (magnitude * scale)), negative where it is too large already,
      infinite for a magnitude of 0.
    """
    if not magnitude:
        return math.inf
    # Logarithms, since the product may leave even float64's range.
    return math.log2(kind.max) - math.log2(magnitude) - math.log2(scale)


def common_scales(
    ranges: Sequence[tuple[int, int] | None],
) -> tuple[int, int] | None:
    """Intersects ranges of scales; None where all of them are None."""
    known = [pair for pair in ranges if pair is not None]
    if not known:
        return None
    return max(low for low, _ in known), min(high for _, high in known)


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
