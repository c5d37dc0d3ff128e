"""Training loss and metrics as means over the updates since the last line.

    means = MeanMetrics()
    means.add(metrics)         # of a call of steps; the device is not read yet
    means.take()               # {"loss": 0.7, "accuracy": 0.8}; new means begin

Skipped steps, whose loss may be NaN, do not count: they changed nothing. What was added
but not taken is part of a checkpoint, so that a resumed run writes the same lines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from mp_loop.step import metrics

_STEPS = "steps"


class MeanMetrics:
    """Sums in the order of the steps, in float64: the same bits whoever adds them."""

    def __init__(self, state: Mapping[str, float] | None = None):
        """Continues from a `state`, or begins."""
        self._sums = {name: float(value) for name, value in (state or {}).items()}
        self._steps = int(self._sums.pop(_STEPS, 0))
        self._added: list[metrics.Metrics] = []

    def add(self, returned: metrics.Metrics) -> None:
        """Adds what a call of steps returned, without waiting for it."""
        self._added.append(returned)

    def state(self) -> dict[str, float]:
        """What was added since the last line: a sum for each name, and steps."""
        for returned in self._added:
            applied = returned["grads_finite"].numpy()
            for name in metrics.of_batch(returned):
                # A checkpoint of an earlier version has the loss alone.
                total = self._sums.get(name, math.nan if self._steps else 0.0)
                for value in returned[name].numpy()[applied]:
                    total += float(value)
                self._sums[name] = total
            self._steps += int(applied.sum())
        self._added.clear()
        return {**self._sums, _STEPS: self._steps}

    def take(self) -> dict[str, float]:
        """Returns the means and begins anew; nothing if every step was skipped."""
        self.state()
        sums, steps = self._sums, self._steps
        self._sums, self._steps = {}, 0
        return {name: total / steps for name, total in sums.items()} if steps else {}
