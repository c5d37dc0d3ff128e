"""A training that is observed at intervals, from its start or from a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator

from mp_loop.config import errors, json_values
from mp_loop.distributed import nests
from mp_loop.numerics import probe, probe_report
from mp_loop.run import checkpointing, experiment
from mp_loop.step import train_state


def restored(built: experiment.Experiment, folder: str) -> experiment.Experiment:
    """Restores the newest checkpoint of a folder into the step; writes nothing.

    Raises:
      UsageError: the folder holds no checkpoint, or none of this experiment.
    """
    if not os.path.isdir(folder) or not os.listdir(folder):
        raise errors.UsageError(f"--checkpoints ({folder}) holds no checkpoint.")

    def enter(phase: int) -> train_state.TrainState:
        nonlocal built
        built = built.in_phase(phase)
        return built.step.state

    state = built.step.state
    with errors.bad_input(checkpointing.CheckpointError):
        checkpointing.Checkpoints(folder, state, keep=1, enter=enter).restore()
    return built


def observations(
    built: experiment.Experiment, looks: int, share: float
) -> Iterator[dict[str, json_values.Json]]:
    """Trains, and observes the step at intervals.

    Args:
      built: the experiment; `inspect_every` steps are taken between two looks.
      looks: how many; the first one before any step.
      share: the share of the gradients that a suitable loss scale may lose.

    Yields:
      What `probe_report.summarize` returns.
    """
    start = int(built.step.state.step)
    looker = probe.Probe(built.step)
    for look in range(looks):
        position = start + look * built.config.training.inspect_every
        _train_to(built, position)
        observed = looker.look(*batch_at(built, position))
        yield probe_report.summarize(observed, share)


def batch_at(built: experiment.Experiment, position: int) -> nests.Batch:
    """Returns the batch of the step that follows `position` steps."""
    epoch, batch = divmod(position, built.steps_per_epoch)
    return next(iter(built.batches(epoch, batch)))


def prepared_batch_at(built: experiment.Experiment, position: int) -> nests.Batch:
    """Returns inputs, as the model takes them, and labels; see `batch_at`."""
    inputs, labels, *_ = batch_at(built, position)
    return built.step.prepare(inputs), labels


def _train_to(built: experiment.Experiment, position: int) -> None:
    """Takes the steps up to a position."""
    done = int(built.step.state.step)
    while done < position:
        epoch, batch = divmod(done, built.steps_per_epoch)
        count = min(position - done, built.steps_per_epoch - batch)
        built.step.run(iter(built.batches(epoch, batch)), count)
        done += count
