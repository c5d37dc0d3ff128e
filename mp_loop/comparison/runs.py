"""The runs of a comparison: their order, each in a process of its own.

    for run in plan(config, arms, repeats=3):
        summary = complete(folder, run, stop_requested)

A run that is finished is not made again; one that was begun is resumed.
"""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence

from mp_loop.comparison import measures
from mp_loop.config import comparison_arms, errors, json_values, settings
from mp_loop.report import page, run_page
from mp_loop.run import files, records

_LINES_OF_A_FAILURE = 15
_FOLDER = "arms"  # of flagfiles and logs


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One training run of a comparison."""

    arm: comparison_arms.Arm
    repeat: int
    config: settings.Config

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return f"{self.arm.slug}-{self.repeat}"


class RunFailed(RuntimeError):
    """A run's process ended with an error; the message shows the end of its log.

    Attributes:
      code: its exit code.
    """

    def __init__(self, run: PlannedRun, code: int, log: pathlib.Path):
        super().__init__(
            f"Arm {run.arm.name} failed (exit code {code}):\n{last_lines(log)}\n"
            f"Full log: {log}"
        )
        self.code = code


class Stopped(RuntimeError):
    """A signal came, and the run was told to stop."""

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.number = number


def plan(
    config: settings.Config, arms: Sequence[comparison_arms.Arm], repeats: int
) -> list[PlannedRun]:
    """Every run, in order: the arms take turns, so that drifts affect them alike.

    Args:
      config: of every run, apart from what its arm and repeat change.
      arms: what is compared.
      repeats: runs of each arm; repeat k has the seed `config.training.seed + k`.

    Raises:
      UsageError: an arm cannot do what the flags ask for, or no folder is named.
    """
    if not config.records.output_dir:
        raise errors.UsageError("--output_dir must name a folder for the comparison.")
    planned = []
    for repeat in range(repeats):
        for arm in arms:
            run = PlannedRun(arm, repeat, config)
            try:
                own = config.replace(
                    loop=arm.loop,
                    precision=arm.precision,
                    output_dir=str(pathlib.Path(config.records.output_dir) / run.name),
                    seed=config.training.seed + repeat,
                )
            except ValueError as error:
                raise errors.UsageError(f"Arm {arm.name}: {error}") from error
            planned.append(dataclasses.replace(run, config=own))
    return planned


def is_finished(folder: pathlib.Path, run: PlannedRun) -> bool:
    """Whether a run of the comparison in `folder` has its summary."""
    return (folder / run.name / records.SUMMARY_FILE).exists()


def complete(
    folder: pathlib.Path, run: PlannedRun, stop_requested: Callable[[], int]
) -> dict[str, json_values.Json]:
    """Makes a run, or what is missing of it, and returns its summary.

    Args:
      folder: of the comparison.
      run: what to make.
      stop_requested: the number of a signal that came; 0: none.

    Raises:
      RunFailed: its process ended with an error.
      Stopped: a signal came; the run has saved a checkpoint.
    """
    (folder / _FOLDER).mkdir(exist_ok=True)
    if not is_finished(folder, run):
        code = train(folder, run, stop_requested)
        if stopped := stop_requested():
            raise Stopped(stopped)
        if code:
            raise RunFailed(run, code, folder / _FOLDER / f"{run.name}.log")
    elif not (folder / run.name / page.FILE).exists():
        run_page.write(folder / run.name)  # killed between summary and report
    return records.read_summary(folder / run.name, measures.NEEDED)


def train(
    folder: pathlib.Path,
    run: PlannedRun,
    stop_requested: Callable[[], int] = lambda: 0,
) -> int:
    """Starts or resumes a run in a process of its own, and waits for its end.

    Args:
      folder: of the comparison.
      run: what to make.
      stop_requested: the number of a signal that came; the process then gets SIGTERM,
        so that it saves a checkpoint. 0: none.

    Returns:
      The exit code of the process.
    """
    flagfile = folder / _FOLDER / f"{run.name}.flags"
    files.write_atomically(flagfile, run.config.to_flagfile())
    words = [sys.executable, "-m", "mp_loop.train", f"--flagfile={flagfile}"]
    if (folder / run.name / records.FLAGS_FILE).exists():
        words.append("--resume")
    with open(folder / _FOLDER / f"{run.name}.log", "ab") as log:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        told = False
        try:
            while True:
                try:
                    return process.wait(timeout=0.2)
                except subprocess.TimeoutExpired:
                    if stop_requested() and not told:
                        process.terminate()
                        told = True
        except BaseException:  # a second Ctrl-C
            process.kill()
            process.wait()
            raise


def last_lines(log: pathlib.Path) -> str:
    """The last lines of a log; of a line that was redrawn, its last state."""
    text = log.read_bytes().decode("utf-8", errors="replace")
    lines = [line.rstrip("\r").split("\r")[-1] for line in text.split("\n")]
    return "\n".join([line for line in lines if line.strip()][-_LINES_OF_A_FAILURE:])
