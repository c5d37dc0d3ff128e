"""How much of its time a training waits for data.

    wait = InputWait(ahead=False)
    wait.add(metrics)             # of a call of steps; the device is not read yet
    wait.take()                   # 0.12: the share since the last line

A step waits while `next` of the iterator does: the host measures that, see
`metrics.FETCHES`. An accelerator computes while the host, which runs ahead of it,
waits. There a batch is waited for only if it comes after the steps before it are over.
If these take equally long, s, and batch j of n comes at a_j, the last step is over at

    end = max over j of a_j + (n - j + 1) s

which gives s, the time that is not waited, without a look at the device in between.
"""

from __future__ import annotations

import time

import numpy as np

from mp_loop.step import metrics


class InputWait:
    """Adds up the calls of steps between two lines of metrics."""

    def __init__(self, ahead: bool):
        """Takes whether the host runs ahead of the device that computes."""
        self._ahead = ahead
        self._calls: list[tuple[metrics.Metrics, float]] = []

    def add(self, returned: metrics.Metrics) -> None:
        """Adds a call that has just returned; the last before `take` was waited for."""
        self._calls.append((returned, time.time()))

    def take(self) -> float | None:
        """Returns the share of the time that was waited, and begins anew.

        None where there is no call, or no clock.
        """
        calls, self._calls = self._calls, []
        if not calls:
            return None
        began, came = (
            np.concatenate([returned[name].numpy() for returned, _ in calls])
            for name in metrics.FETCHES
        )
        if np.isnan(began).any():
            return None
        # Between calls there may be more than training.
        seconds = sum(
            end - float(returned["fetch_began"][0]) for returned, end in calls
        )
        waited = np.sum(came - began)
        if self._ahead:
            waited = min(waited, idle(began[0], came, calls[-1][1]))
        return float(np.clip(waited / max(float(seconds), 1e-9), 0, 1))


def idle(began: float, came: np.ndarray, end: float) -> float:
    """Returns for how many seconds a device had nothing to do; see the module.

    Args:
      began: when the first batch was wanted.
      came: float64 [n], when each was there.
      end: when the last step was over.
    """
    count = len(came)
    step_seconds = np.min((end - came) / np.arange(count, 0, -1))
    return end - began - count * step_seconds
