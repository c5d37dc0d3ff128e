"""The phases of a run: with --head_epochs, first the last layer alone, then the rest.

Each phase has its own step, optimizer and learning-rate schedule. Without
--head_epochs there is one phase.
"""

from __future__ import annotations

import dataclasses

from mp_loop.config import errors, settings


@dataclasses.dataclass(frozen=True)
class Phases:
    """Where the phases of a run end.

    Attributes:
      steps_per_epoch: batches in one pass over the training data.
      ends: for each phase, from phase 0 on, the number of steps up to its end.
    """

    steps_per_epoch: int
    ends: tuple[int, ...]

    @property
    def total_steps(self) -> int:
        """Length of the run."""
        return self.ends[-1]

    def steps(self, phase: int) -> int:
        """Length of a phase."""
        return self.ends[phase] - (self.ends[phase - 1] if phase else 0)

    def trains_head_alone(self, phase: int) -> bool:
        """Whether a phase trains only the model's last layer."""
        return phase < len(self.ends) - 1


def from_settings(config: settings.Config, steps_per_epoch: int) -> Phases:
    """Makes the phases of a run.

    Raises:
      UsageError: nothing of the run is left after --head_epochs.
    """
    total_steps = config.training.steps or config.training.epochs * steps_per_epoch
    head_steps = config.model.head_epochs * steps_per_epoch
    if head_steps >= total_steps:
        raise errors.UsageError(
            f"--head_epochs ({config.model.head_epochs}) are {head_steps} steps; the "
            f"run has {total_steps}, and must have more."
        )
    ends = (head_steps, total_steps) if head_steps else (total_steps,)
    return Phases(steps_per_epoch, ends)
