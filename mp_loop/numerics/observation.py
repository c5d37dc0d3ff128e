"""What a probe observed in one step, still on the device."""

from __future__ import annotations

import dataclasses
from typing import TypedDict

import numpy as np
import tensorflow as tf

from mp_loop.distributed import nests

DeviceCounts = dict[str, tf.Tensor]  # of one tensor, by name; see `HostCounts`


class HostCounts(TypedDict, total=False):
    """What `counting` counted of one tensor, or of its change, on the host.

    Attributes:
      size: how many numbers it has, int32 [].
      nonfinite: how many are infinite and how many NaN, int32 [2].
      zeros: how many are 0, int32 [].
      histogram: how many have which exponent; see `counting.magnitudes`.
      largest: the largest magnitude, float32 [].
      lost: see `counting.changes`; and so are the norms.
      weight_norm: float32 [].
      update_norm: float32 [].
    """

    size: np.int32
    nonfinite: np.ndarray
    zeros: np.int32
    histogram: np.ndarray
    largest: np.float32
    lost: np.ndarray
    weight_norm: np.float32
    update_norm: np.float32


@dataclasses.dataclass(frozen=True)
class ObservedLayer:
    """One output of a layer: the layer's name and type, and the dtype of the output."""

    name: str
    type: str
    dtype: str


@dataclasses.dataclass(frozen=True)
class ObservedVariable:
    """A trained variable; `dtype` is that of the weight that the forward pass reads."""

    path: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a probe observed in one step.

    Attributes:
      layers: the observed outputs, in order of execution.
      variables: the trained variables.
      owners: by the path of a variable, the index among `layers` of its layer.
      half: the 16-bit dtype; None for a float32 step.
      counts: nested tensors, still on the device.
    """

    layers: list[ObservedLayer]
    variables: list[ObservedVariable]
    owners: dict[str, int]
    half: str | None
    counts: dict[str, nests.Nest]

    def on_host(self) -> dict[str, nests.Nest]:
        """Returns the counts as NumPy arrays; waits for the device."""
        return tf.nest.map_structure(
            lambda x: None if x is None else x.numpy(), self.counts
        )
