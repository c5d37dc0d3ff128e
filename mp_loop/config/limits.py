"""The range of float32, in which losses are scaled and settings are stored."""

from __future__ import annotations

SMALLEST = 2.0**-126  # the smallest positive normal number
LARGEST = 2.0**128 - 2.0**104  # the largest finite number
