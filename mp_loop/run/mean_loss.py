"""The mean training loss since the last line of metrics.

    mean = MeanLoss()
    mean.add(metrics)          # of a call of steps; the device is not read yet
    mean.take()                # the mean; a new one begins

Skipped steps, whose loss may be NaN, do not count: they changed nothing. What was added
but not taken is part of a checkpoint, so that a resumed run writes the same lines.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf


class MeanLoss:
    """A sum in the order of the steps, in float64: the same bits whoever adds them."""

    def __init__(self, state: Mapping[str, float] | None = None):
        """Continues from a `state`, or begins."""
        self._sum = float((state or {}).get("loss", 0.0))
        self._steps = int((state or {}).get("steps", 0))
        self._added: list[tuple[tf.Tensor, tf.Tensor]] = []

    def add(self, metrics: Mapping[str, tf.Tensor]) -> None:
        """Adds what a call of steps returned, without waiting for it."""
        self._added.append((metrics["loss"], metrics["grads_finite"]))

    def state(self) -> dict[str, float]:
        """What was added since the last line: sum of losses and steps."""
        for losses, applied in self._added:
            for loss, counts in zip(losses.numpy(), applied.numpy(), strict=True):
                if counts:
                    self._sum += float(loss)
                    self._steps += 1
        self._added.clear()
        return {"loss": self._sum, "steps": self._steps}

    def take(self, otherwise: float | None) -> float | None:
        """Returns the mean and begins anew; `otherwise` if every step was skipped."""
        self.state()
        mean = self._sum / self._steps if self._steps else otherwise
        self._sum, self._steps = 0.0, 0
        return mean
