"""When a training is stuck: every one of its last steps was skipped."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from mp_loop.run import counters, planning
from mp_loop.step import protocol

_MOST_NAMES = 5

logger = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """Every one of the last steps was skipped; the message names what overflows."""


class DivergenceCheck:
    """Tells when a training is stuck, and does what the plan says then."""

    def __init__(self, step: protocol.Step, plan: planning.Plan):
        """Takes the step that trains, and when a training is stuck."""
        self._step, self._plan = step, plan
        self._overflows_before = step.state.overflows.numpy()
        self._warned = False

    def check(self, values: Mapping[str, float | None], origin: str = "") -> None:
        """Looks at the state, and at the metrics of its last step.

        Args:
          values: the metrics.
          origin: where the overflow began, if that was looked into.

        Raises:
          TrainingDiverged: the training is stuck, and the plan says "raise".
        """
        state = self._step.state
        skips = int(state.stuck_steps.numpy())
        if skips < self._plan.diverged_after:
            self._warned = False
            if not skips:
                self._overflows_before = state.overflows.numpy()
            return
        scale = values["loss_scale"]
        at_floor = " (its floor)" if scale <= self._step.min_scale else ""
        message = (
            f"every one of the last {skips} steps (now step {state.step.numpy()}) was "
            f"skipped; the loss is {values['loss']:g}, the loss scale "
            f"{scale:g}{at_floor}. "
            f"{_blame(self._step, self._overflows_before, origin)} Look for inf or "
            "nan in the data, lower --learning_rate, or try --precision=bfloat16; "
            "python -m mp_loop.inspect --advise measures what helps."
        )
        if self._plan.on_stuck == "raise":
            raise TrainingDiverged(message)
        if self._plan.on_stuck == "warn" and not self._warned:
            logger.warning("The training is stuck: %s", message)
            self._warned = True


def _blame(step: protocol.Step, before: Sequence[int], origin: str) -> str:
    """Names the variables that overflowed most since the counts were `before`."""
    overflows = counters.by_path(step, step.state.overflows.numpy() - before)
    origin = f" Where the last overflow began: {origin}." if origin else ""
    if not overflows:
        reasons = ", ".join(counters.skip_reasons(step.state)) or "none"
        return f"No non-finite gradient was recorded; reasons: {reasons}.{origin}"
    names = ", ".join(path for path, _ in overflows.most_common(_MOST_NAMES))
    more = len(overflows) - _MOST_NAMES
    also = f" and {more} more" if more > 0 else ""
    return f"Non-finite gradients: {names}{also}.{origin}"
