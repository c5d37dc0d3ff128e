"""Inspects steps of a run at intervals, and explains why steps were skipped.

    watcher = ProbeWatcher(probe, batches, steps_per_epoch, run)
    watcher.look(position)                 # before a step, where one is due
    watcher.remember(position, metrics)    # after every call of steps
    line |= watcher.report(position)       # when the device is read

Data are a deterministic function of the step, so the batch of any step can be made
again. A skipped batch is computed again only when it is reported: where nothing is
skipped, nothing is spent. By then later steps may have changed the weights;
`updates_since` says how many did (0: these are the very weights). Where nothing
overflows any more, larger scales show what is nearest to overflowing. Random layers
draw again. Step, scale and pass are always those of the skipped step itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import tensorflow as tf

from mp_loop.config import json_values
from mp_loop.distributed import nests
from mp_loop.numerics import observation, probe, probe_report
from mp_loop.run import writers

# How many powers of two above the scale that overflowed are tried.
_LARGER_SCALES = 8

logger = logging.getLogger(__name__)


class Watcher(Protocol):
    """What a training loop tells of its steps, and asks about them."""

    def look(self, position: int) -> None:
        """Inspects the step that follows `position` steps."""

    def remember(self, position: int, metrics: Mapping[str, tf.Tensor]) -> None:
        """Keeps what the call of steps that began at `position` returned."""

    def report(self, position: int) -> dict[str, json_values.Json]:
        """Returns what a line of metrics at `position` says of skipped steps."""

    def forget(self) -> None:
        """Drops what has not been reported: the run goes back to an earlier step."""


class NullWatcher:
    """Inspects and explains nothing."""

    def look(self, position: int) -> None:
        """Does nothing."""

    def remember(self, position: int, metrics: Mapping[str, tf.Tensor]) -> None:
        """Does nothing."""

    def report(self, position: int) -> dict[str, json_values.Json]:
        """Returns nothing."""
        return {}

    def forget(self) -> None:
        """Does nothing."""


class ProbeWatcher:
    """Watches one run with a probe."""

    def __init__(
        self,
        probe: probe.Probe,
        batches: Callable[[int, int], tf.data.Dataset],
        steps_per_epoch: int,
        run: writers.Writer,
        explains: bool = True,
    ):
        """Nothing is inspected yet.

        Args:
          probe: of the step that trains.
          batches: makes the data of (epoch, first batch).
          steps_per_epoch: batches in one pass over the data.
          run: where what is seen is written.
          explains: whether skipped steps are explained.
        """
        self._probe = probe
        self._batches = batches
        self._steps_per_epoch = steps_per_epoch
        self._run = run
        self._explains = explains
        self._seen: list[observation.Observation] = []
        self._calls: list[tuple[int, Mapping[str, tf.Tensor]]] = []

    def look(self, position: int) -> None:
        """Inspects the batch of the step to come; does not wait for the device."""
        try:
            self._seen.append(self._probe.look(*self._batch(position)))
        except Exception as error:  # An inspection must not end a training.
            logger.warning("Step %d was not inspected: %s.", position, _reason(error))

    def remember(self, position: int, metrics: Mapping[str, tf.Tensor]) -> None:
        """Keeps what the call of steps that began at `position` returned."""
        if self._explains:
            self._calls.append((position, metrics))

    def report(self, position: int) -> dict[str, json_values.Json]:
        """Writes what was seen; explains the last skip since the last report.

        Args:
          position: the steps taken so far.

        Returns:
          `{"overflow": ...}` if a step was skipped: what `Probe.origin` returned, the
          `step` (counted from 1), its `loss_scale`, `updates_since`, one line of
          `text`, and, if the overflow was not seen again, `seen_at`: the larger
          scale at which one was, or None.
        """
        for seen in self._seen:
            self._run.log_numerics(probe_report.summarize(seen))
        self._seen.clear()
        calls, self._calls = self._calls, []
        for start, metrics in reversed(calls):
            skipped = np.flatnonzero(~metrics["grads_finite"].numpy())
            if skipped.size:
                last = int(skipped[-1])
                scale = float(metrics["loss_scale"][last])
                forward_finite = bool(metrics["forward_finite"][last])
                explained = self._explain(start + last, scale, forward_finite, position)
                return {"overflow": explained}
        return {}

    def forget(self) -> None:
        """Drops what has not been reported: the run goes back to an earlier step."""
        self._seen.clear()
        self._calls.clear()

    def _explain(
        self, skipped: int, scale: float, forward_finite: bool, position: int
    ) -> dict[str, json_values.Json]:
        """Computes a skipped step again, and says where it overflowed."""
        since = position - skipped - 1  # every step since then was applied
        found = {"step": skipped + 1, "updates_since": since, "loss_scale": scale}
        more = f"{since} more update{'s' if since > 1 else ''}"
        later = f" with the weights after {more}" if since else ""
        try:
            batch = self._batch(skipped)
            seen = self._probe.origin(*batch, scale=scale)
            if not seen["finite"]:
                text = f"{seen['text']}{f' (seen{later})' if since else ''}"
                return seen | found | {"text": text}
            seen["pass"] = "backward" if forward_finite else "forward"
            text = f"{seen['pass']}: {seen['text']}{later}"
            found["seen_at"] = None
            for _ in range(_LARGER_SCALES if forward_finite else 0):
                scale *= 2
                nearest = self._probe.origin(*batch, scale=scale, search=False)
                if not nearest["finite"]:
                    found["seen_at"] = scale
                    return nearest | found | {"text": f"{text}; {nearest['text']}"}
            return seen | found | {"text": text}
        except Exception as error:  # An inspection must not end a training.
            return found | {"text": f"not explained: {_reason(error)}"}

    def _batch(self, position: int) -> nests.Batch:
        epoch, batch = divmod(position, self._steps_per_epoch)
        return next(iter(self._batches(epoch, batch)))


def _reason(error: Exception) -> str:
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return "out of memory"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": .")
