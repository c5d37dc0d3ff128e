"""When a training logs, evaluates, saves, inspects and ends, in steps.

    plan = Plan(total_steps=1000, steps_per_epoch=100, batch_size=32)
    plan.steps_until_due(0)     # 20: a line of metrics
    plan.due_at(100)            # Due(log=True, evaluate=True, save=True)

A call of several steps never crosses a boundary.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Due:
    """What is to be done after a step, in this order."""

    log: bool
    evaluate: bool
    save: bool

    @property
    def anything(self) -> bool:
        """Whether the device has to be read."""
        return self.log or self.evaluate or self.save


@dataclasses.dataclass(frozen=True)
class Plan:
    """When to do what, counted in steps.

    Attributes:
      total_steps: where the run ends.
      steps_per_epoch: batches in one pass over the data.
      batch_size: examples of one step.
      steps_per_call: the most steps taken without reading the device.
      log_every: steps between lines of metrics.
      eval_every: steps between evaluations; 0: every epoch.
      checkpoint_every: steps between checkpoints; 0: every epoch.
      diverged_after: skipped steps in a row after which the training is stuck. Each
        one halves a dynamic scale: there must be enough to find the right one.
      on_stuck: what happens then. "raise" ends the run (`TrainingDiverged`),
        "warn" logs a warning and continues, "stay" just continues.
      rollback: how often a training that is stuck goes back to the last checkpoint
        from before, instead of ending.
      inspect_every: steps between inspections by a probe; 0: none.
      profile_range: the first step to be profiled and the one after the last, or
        None.
      early_stopping: evaluations in a row without a better one that end the training;
        0: none do.
      patient_from: the first step from which they count.
    """

    total_steps: int
    steps_per_epoch: int
    batch_size: int
    steps_per_call: int = 1
    log_every: int = 20
    eval_every: int = 0
    checkpoint_every: int = 0
    diverged_after: int = 100
    on_stuck: str = "raise"
    rollback: int = 0
    inspect_every: int = 0
    profile_range: tuple[int, int] | None = None
    early_stopping: int = 0
    patient_from: int = 0

    def due_at(self, position: int) -> Due:
        """Returns what is due when `position` steps have been taken."""
        return Due(
            self.is_due(position, self.log_every),
            self.is_due(position, self.eval_every),
            self.is_due(position, self.checkpoint_every),
        )

    def is_due(self, position: int, every: int) -> bool:
        """Tells whether something that happens `every` steps happens now."""
        every = every or self.steps_per_epoch
        return position % every == 0 or position == self.total_steps

    def is_over(self, position: int, best: int) -> bool:
        """Tells whether no more is to be hoped for, of `best` being the best step."""
        if not self.early_stopping:
            return False
        every = self.eval_every or self.steps_per_epoch
        evaluations = position // every - max(best, self.patient_from) // every
        return evaluations >= self.early_stopping

    def inspects(self, position: int) -> bool:
        """Tells whether the step that follows is inspected."""
        return bool(self.inspect_every) and position % self.inspect_every == 0

    def steps_until_due(self, position: int) -> int:
        """Returns how many steps one call may take from here."""
        periods = (
            self.log_every,
            self.eval_every or self.steps_per_epoch,
            self.checkpoint_every or self.steps_per_epoch,
            self.steps_per_epoch,
            self.inspect_every or self.steps_per_epoch,
        )
        left = [every - position % every for every in periods]
        left += [
            edge - position for edge in self.profile_range or () if edge > position
        ]
        return min(*left, self.steps_per_call, self.total_steps - position)
