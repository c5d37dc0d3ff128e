"""How a training ended: exit code and message, and the table of a finished one."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from mp_loop.config import errors
from mp_loop.rendering import tables

FAILED = 1
NOT_WRITTEN = 3
# EX_TEMPFAIL of sysexits.h: what was asked for may succeed if tried again.
WORKER_LOST = 75
_SIGNALLED = 128  # plus the number of the signal


@dataclasses.dataclass(frozen=True)
class Outcome:
    """An end other than success: exit code, and one line that says what happened."""

    code: int
    message: str


def tell(outcome: Outcome) -> int:
    """Writes the message to stderr; returns the exit code."""
    sys.stderr.write(outcome.message + "\n")
    return outcome.code


def diverged(error: BaseException) -> Outcome:
    """Every one of the last steps was skipped."""
    return Outcome(FAILED, f"Training diverged: {error}")


def replicas_differ(error: BaseException) -> Outcome:
    """Devices have come to hold different weights."""
    return Outcome(FAILED, f"Replicas differ: {error}")


def worker_lost(lost: str) -> Outcome:
    """Another worker of the cluster did not come or is gone."""
    return Outcome(
        WORKER_LOST,
        f"Worker lost: {lost} Start all workers again, with --resume, to continue "
        "from the last checkpoint.",
    )


def interrupted(step: int, number: int, output_dir: str) -> Outcome:
    """A signal of that number has come."""
    return Outcome(
        _SIGNALLED + number,
        f"Interrupted at step {step}; a checkpoint was saved. "
        f"{_continue_with(output_dir)}",
    )


def not_saved(error: BaseException, rescued: str | None, output_dir: str) -> Outcome:
    """The run folder could not be written while the run trained.

    Args:
      error: why.
      rescued: the folder where the state was saved instead, or None.
      output_dir: of the run.
    """
    saved = "The last checkpoint in it was left as it is."
    if rescued:
        saved = f"The state was saved in {rescued}."
    return Outcome(
        NOT_WRITTEN,
        f"--output_dir ({output_dir}) cannot be written any more: {error}. {saved} "
        f"{_continue_with(rescued or output_dir)}",
    )


def results_not_written(error: OSError, output_dir: str) -> Outcome:
    """The run has trained, but its model or summary could not be written."""
    return Outcome(
        NOT_WRITTEN,
        f"--output_dir ({output_dir}) cannot be written: "
        f"{error.strerror or errors.one_line(error)}. The training is complete and in "
        f"its last checkpoint. To write the rest: {_continue_with(output_dir)}",
    )


def results_table(summary: Mapping[str, Any]) -> str:
    """Lays a summary out for the terminal."""
    rows = [
        ("accuracy", f"{summary['eval_accuracy']:.4f}"),
        ("loss", f"{summary['eval_loss']:.4f}"),
        ("steps", f"{summary['steps']} ({summary['skipped_steps']} skipped)"),
        ("loss scale", f"{summary['final_loss_scale']:g}"),
        ("ms/step", f"{summary['milliseconds_per_step']:.1f}"),
        ("examples/s", f"{summary['examples_per_second']:.0f}"),
        ("training time", f"{summary['train_seconds']:.1f} s"),
        ("peak memory", f"{summary['peak_memory_bytes'] / 2**20:.0f} MiB"),
    ]
    title = (
        f"{summary['model']} on {summary['dataset']}, {summary['precision']}, "
        f"{summary['loop']} loop"
    )
    lines = tables.columns(rows, left=True, indent="  ")
    return "\n".join(["", title, *lines, ""])


def _continue_with(output_dir: str) -> str:
    return (
        "Continue with: python -m mp_loop.train "
        f"--flagfile={output_dir}/flags.txt --resume"
    )
