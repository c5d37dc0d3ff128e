"""A histogram of magnitudes, and what follows from it for 16 bits; on the host.

    found = Histogram(counting.magnitudes(tensor).numpy())
    found.underflows(float_format.FLOAT16)          # how many would become 0
    found.underflows(float_format.FLOAT16, 15)      # ... when multiplied by 2^15
    found.scales(float_format.FLOAT16, share=0.01)  # (from, to), as powers of two

One histogram answers every question exactly, for every loss scale that is a power of
two. It counts the numbers of each binary exponent in four classes of the significand;
at the borders between these classes rounding to 16 bits changes direction.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from mp_loop.numerics import float_format

# Exponents of float32, subnormal numbers included.
LEAST = float_format.FLOAT32.smallest_exponent
MOST = float_format.FLOAT32.largest_exponent
# Where each class of the significand begins, in units of its last bit: a power of two
# itself; what is above it; what bfloat16, and what float16, rounds up to the next
# power of two, and so to infinity where the exponent is the format's largest.
CLASSES = (0, 1, 0x7F8000, 0x7FF000)
INFINITE = 1 + (MOST - LEAST + 1) * len(CLASSES)

BINS = INFINITE + 2  # zeros, each exponent's classes, infinities, NaNs


@dataclasses.dataclass(frozen=True)
class Histogram:
    """The magnitudes of a tensor's numbers.

    Loss scales are powers of two, given as exponents: `scale=15` is 2^15.

    Attributes:
      counts: integers [BINS], from `counting.magnitudes`, or the sum of several.
    """

    counts: np.ndarray

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return int(self.counts.sum())

    @property
    def zeros(self) -> int:
        """How many are 0."""
        return int(self.counts[0])

    @property
    def inf(self) -> int:
        """How many are infinite."""
        return int(self.counts[INFINITE])

    @property
    def nan(self) -> int:
        """How many are NaN."""
        return int(self.counts[INFINITE + 1])

    @property
    def nonzero(self) -> int:
        """How many are finite and not 0."""
        return int(self._classes.sum())

    @property
    def exponents(self) -> dict[int, int]:
        """How many have a magnitude of 2^e to 2^(e+1), for every e that occurs."""
        sums = self._classes.sum(axis=1)
        return {int(i) + LEAST: int(sums[i]) for i in np.flatnonzero(sums)}

    def underflows(self, form: float_format.FloatFormat, scale: int = 0) -> int:
        """How many of the nonzero numbers, times the scale, round to 0."""
        # Half the smallest number is a tie, which goes to 0, the even neighbour.
        border = form.smallest_exponent - 1 - scale
        return self._below(border) + self._of_class(border, 0)

    def subnormals(self, form: float_format.FloatFormat, scale: int = 0) -> int:
        """How many become subnormal numbers, which have fewer bits."""
        return self._below(form.normal_exponent - scale) - self.underflows(form, scale)

    def overflows(self, form: float_format.FloatFormat, scale: int = 0) -> int:
        """How many of the finite numbers, times the scale, round to infinity."""
        border = form.largest_exponent - scale
        # The tie after the largest number goes to the even neighbour, which overflows.
        ties = CLASSES.index(2**23 - 2 ** (22 - form.mantissa_bits))
        above = self.nonzero - self._below(border + 1)
        return above + sum(self._of_class(border, c) for c in range(ties, 4))

    def scales(
        self, form: float_format.FloatFormat, share: float
    ) -> tuple[int, int] | None:
        """Finds the loss scales that suit these gradients.

        Args:
          form: the format that the gradients will be stored in.
          share: the share of the nonzero numbers that may become 0.

        Returns:
          The smallest scale at which less than `share` of the nonzero numbers
          underflow, and the largest at which none overflows; no scale suits if the
          first is larger than the second. None if there are no nonzero numbers.
        """
        if not self.nonzero:
            return None
        exponents = self.exponents
        most = form.largest_exponent - max(exponents) + 1
        while self.overflows(form, most):
            most -= 1
        least = form.smallest_exponent - 1 - max(exponents)
        while self.underflows(form, least) >= share * self.nonzero:
            least += 1
        return least, most

    @property
    def _classes(self) -> np.ndarray:
        return np.asarray(self.counts)[1:INFINITE].reshape(-1, len(CLASSES))

    def _below(self, exponent: int) -> int:
        """How many nonzero numbers are smaller than 2^exponent."""
        return int(self._classes[: max(exponent - LEAST, 0)].sum())

    def _of_class(self, exponent: int, index: int) -> int:
        inside = LEAST <= exponent <= MOST
        return int(self._classes[exponent - LEAST, index]) if inside else 0


def headroom(
    magnitude: float, form: float_format.FloatFormat, scale: float = 1.0
) -> float:
    """Returns how often a magnitude times the scale could double before it overflows.

    Args:
      magnitude: the largest finite magnitude of a tensor.
      form: the format; 65504 is the largest number of float16.
      scale: the loss scale.

    Returns:
      log2(largest / (magnitude * scale)): negative if it overflows already, infinite
      for a magnitude of 0.
    """
    if not magnitude:
        return math.inf
    # Logarithms, since the product may leave even float64's range.
    return math.log2(form.largest) - math.log2(magnitude) - math.log2(scale)


def common_scales(
    ranges: Sequence[tuple[int, int] | None],
) -> tuple[int, int] | None:
    """Intersects ranges of scales; None if all of them are None."""
    known = [pair for pair in ranges if pair is not None]
    if not known:
        return None
    return max(low for low, _ in known), min(high for _, high in known)
