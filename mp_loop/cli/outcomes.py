"""How a command ends: its exit code, and the line on stderr that explains it.

    return outcomes.interrupted(step, signal.SIGTERM, output_dir).tell()

The last words of a run that can go on are the command that continues it.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys

from mp_loop.config import errors

DONE = 0
FAILED = 1
BAD_INPUT = 2
NOT_WRITABLE = 3
# EX_TEMPFAIL of sysexits.h: what was asked for may succeed if tried again.
WORKER_LOST = 75


def signal_code(number: int) -> int:
    """The exit code after a signal, as shells have it."""
    return 128 + number


@dataclasses.dataclass(frozen=True)
class Outcome:
    """An end that is not success."""

    code: int
    message: str

    def tell(self) -> int:
        """Writes the message to stderr and returns the exit code."""
        sys.stderr.write(f"{self.message}\n")
        return self.code


def bad_input(error: Exception) -> Outcome:
    """The user's input cannot be used; nothing was done."""
    return Outcome(BAD_INPUT, errors.one_line(error))


def diverged(error: Exception) -> Outcome:
    """A training is stuck."""
    return Outcome(FAILED, f"Training diverged: {error}")


def replicas_differ(error: Exception) -> Outcome:
    """Replicas no longer hold the same weights."""
    return Outcome(FAILED, f"Replicas differ: {error}")


def interrupted(step: int, number: int, output_dir: str) -> Outcome:
    """A signal ended a run after a checkpoint of `step` was saved."""
    return Outcome(
        signal_code(number),
        f"Interrupted at step {step}; a checkpoint was saved. Continue with: "
        f"{_resume_command(output_dir)}",
    )


def data_lost(reason: str, output_dir: str) -> Outcome:
    """Data could be read when the run began, and can be no more."""
    text = errors.because("The data cannot be read any more", reason)
    if not output_dir:
        return Outcome(FAILED, text)
    return Outcome(
        FAILED, f"{text} When they can, continue with: {_resume_command(output_dir)}"
    )


def worker_lost(reason: str) -> Outcome:
    """Another worker did not start or stopped."""
    return Outcome(
        WORKER_LOST,
        f"Worker lost: {reason} Start all workers again with --resume to continue from "
        "the last checkpoint.",
    )


def folder_lost(output_dir: str, error: Exception, rescued: str | None) -> Outcome:
    """The run folder became unwritable during the training.

    Args:
      output_dir: the run folder.
      error: why it cannot be written.
      rescued: the folder that the state was saved in instead, if it was.
    """
    saved = "The last checkpoint in it is unchanged."
    if rescued:
        saved = f"The state was saved in {rescued}."
    return Outcome(
        NOT_WRITABLE,
        f"--output_dir ({output_dir}) cannot be written any more: {error}. {saved} "
        f"Continue with: {_resume_command(rescued or output_dir)}",
    )


def results_not_written(output_dir: str, error: OSError) -> Outcome:
    """The training is finished, but its model or summary could not be written."""
    return Outcome(
        NOT_WRITABLE,
        f"--output_dir ({output_dir}) cannot be written: "
        f"{error.strerror or errors.one_line(error)}. The training is finished and in "
        "its last checkpoint. Write the results with: "
        f"{_resume_command(output_dir)}",
    )


def _resume_command(output_dir: str) -> str:
    """The command as a shell reads it, whatever the folder is called."""
    flagfile = f"--flagfile={output_dir}/flags.txt"
    return shlex.join(["python", "-m", "mp_loop.train", flagfile, "--resume"])
