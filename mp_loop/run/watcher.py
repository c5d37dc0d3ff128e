"""Watches a run: looks into it at intervals, and into what was skipped.

    witness = Witness(probe, batches, steps_per_epoch, run)
    witness.look(position)                 # before a step, where one is due
    witness.remember(position, metrics)    # after every call of steps
    line |= witness.report(position)       # when the device is read

Data are a deterministic function of the step, so the batch of any step can be had
again. What a skipped batch computes is seen again only when it is reported: where
nothing is skipped, nothing is spent. By then later steps may have moved the
weights; how many did is said (`updates_since`; 0: these are the very weights), and
where nothing overflows any more, larger scales show what is nearest to it. Random
layers draw anew. Step, scale and pass are always those of the skipped step itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from mp_loop.numerics import observation, probe, probe_report
from mp_loop.run import run_folder

# How many powers of two above the scale that overflowed others are tried.
_TRIED = 8

logger = logging.getLogger(__name__)


class Witness:
    """Looks into one run."""

    def __init__(
        self,
        probe: probe.Probe,
        batches: Callable[[int, int], tf.data.Dataset],
        steps_per_epoch: int,
        run: run_folder.RunFolder,
        explains: bool = True,
    ):
        """Nothing is looked at yet.

        Args:
          probe: of the step that trains.
          batches: makes the data of (epoch, first batch).
          steps_per_epoch: batches in one pass over the data.
          run: where what is seen is written.
          explains: whether skipped batches are looked into.
        """
        self._probe = probe
        self._batches = batches
        self._steps_per_epoch = steps_per_epoch
        self._run = run
        self._explains = explains
        self._sights: list[observation.Observation] = []
        self._calls: list[tuple[int, dict[str, tf.Tensor]]] = []

    def look(self, position: int) -> None:
        """Looks at the batch of the step to come; the device is not waited for."""
        try:
            self._sights.append(self._probe.look(*self._batch(position)))
        except Exception as error:  # Looking must not end a training.
            logger.warning("Step %d was not inspected: %s.", position, _reason(error))

    def remember(self, position: int, metrics: dict[str, tf.Tensor]) -> None:
        """Keeps what a call of steps returned, `position` being where it began."""
        if self._explains:
            self._calls.append((position, metrics))

    def report(self, position: int) -> dict[str, Any]:
        """Writes what was seen; explains the last skip since the last report.

        Args:
          position: the steps taken so far.

        Returns:
          `{"overflow": ...}` if a step was skipped: what `Probe.origin` returned, the
          `step` (counted from 1), its `loss_scale`, `updates_since`, one line of
          `text`, and, if the overflow was not seen again, `seen_at`: the larger
          scale at which one was, or None.
        """
        for sight in self._sights:
            self._run.log_numerics(probe_report.summarize(sight))
        self._sights.clear()
        calls, self._calls = self._calls, []
        for start, metrics in reversed(calls):
            skipped = np.flatnonzero(~metrics["grads_finite"].numpy())
            if skipped.size:
                last = int(skipped[-1])
                scale = float(metrics["loss_scale"][last])
                forward_finite = bool(metrics["forward_finite"][last])
                return {
                    "overflow": self._explain(
                        start + last, scale, forward_finite, position
                    )
                }
        return {}

    def forget(self) -> None:
        """Drops what has not been reported: the run goes back to an earlier step."""
        self._sights.clear()
        self._calls.clear()

    def _explain(
        self, skipped: int, scale: float, forward_finite: bool, position: int
    ) -> dict[str, Any]:
        since = position - skipped - 1  # every step since then was applied
        found = {"step": skipped + 1, "updates_since": since, "loss_scale": scale}
        batch = self._batch(skipped)
        later = f" with the weights of {since} updates later" if since else ""
        try:
            seen = self._probe.origin(*batch, scale=scale)
            if not seen["finite"]:
                said = f"{seen['text']}{f' (seen{later})' if since else ''}"
                return seen | found | {"text": said}
            seen["pass"] = "backward" if forward_finite else "forward"
            said = f"{seen['pass']}: {seen['text']}{later}"
            found["seen_at"] = None
            for _ in range(_TRIED if forward_finite else 0):
                scale *= 2
                nearest = self._probe.origin(*batch, scale=scale, search=False)
                if not nearest["finite"]:
                    found["seen_at"] = scale
                    return nearest | found | {"text": f"{said}; {nearest['text']}"}
            return seen | found | {"text": said}
        except Exception as error:  # Looking must not end a training.
            return found | {"text": f"not looked into: {_reason(error)}"}

    def _batch(self, position: int) -> tuple[Any, ...]:
        epoch, batch = divmod(position, self._steps_per_epoch)
        return next(iter(self._batches(epoch, batch)))


def _reason(error: Exception) -> str:
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return "out of memory"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": .")
