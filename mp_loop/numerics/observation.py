"""What a probe observed in one step, still on the device."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf


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
    counts: dict[str, Any]

    def on_host(self) -> dict[str, Any]:
        """Returns the counts as NumPy arrays; waits for the device."""
        return tf.nest.map_structure(
            lambda x: None if x is None else x.numpy(), self.counts
        )
