"""Compares loops and precisions: `python -m mp_loop.compare --flagfile=exp.flags`.

Every arm (a loop and a precision, say keras:float16) trains in processes of its
own, `--repeats` times, taking turns. `--output_dir` gets the run folders, one
table (comparison.md, comparison.json) and one picture (comparison.png). Repeat
k of every arm uses the seed --seed + k, so that repeats differ and arms are
paired: same initial weights, same order of the data.

With --exact nothing is timed or written. Our loop, with Keras' arithmetic and
Keras' rule, and Keras' loop take the same steps side by side (--steps, or
--epochs), and every bit is compared after each; the first step and variable that
differ are named. Set --initial_scale high to see overflows.

Exit codes: 0 done, 1 an arm failed or a bit differs, 2 bad input (one line on
stderr, nothing written).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from mp_loop import chart, command, config, experiment, record, report

TABLE_FILE = "comparison.md"
JSON_FILE = "comparison.json"
PICTURE_FILE = "comparison.png"

_LINES_OF_A_FAILURE = 15


@dataclasses.dataclass(frozen=True)
class Arm:
    """One side of the comparison."""

    loop: str
    precision: str

    @property
    def name(self) -> str:
        """As in `--arms`."""
        return f"{self.loop}:{self.precision}"

    @property
    def slug(self) -> str:
        """As in names of files."""
        return f"{self.loop}-{self.precision}"


@dataclasses.dataclass(frozen=True)
class Turn:
    """One run to make."""

    arm: Arm
    repeat: int
    settings: config.Config

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return f"{self.arm.slug}-{self.repeat}"


def declare(flag_values: flags.FlagValues) -> None:
    """Declares the flags of this command alone."""
    flags.DEFINE_integer(
        "repeats", 3, "Runs of each arm.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_string(
        "arms",
        "",
        "Arms, loop:precision, parted by commas; the first Keras arm is what the "
        "others are measured by. Default: custom:P,keras:P with P = --precision.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "exact",
        False,
        "Prove on this model and data that our loop is Keras' to the bit.",
        flag_values=flag_values,
    )


def run(settings: config.Config, flag_values: Any) -> int:
    """Runs the comparison; returns the exit code."""
    if settings.precision == "auto":
        with command.quiet_start():
            settings = experiment.resolved(settings)
    if flag_values.exact:
        return _prove(settings)
    arms = parse_arms(flag_values.arms, settings.precision)
    turns = plan(settings, arms, flag_values.repeats)
    folder = command.new_folder(settings.output_dir, "a comparison")
    (folder / "arms").mkdir()
    for number, turn in enumerate(turns, start=1):
        said = f"[{number}/{len(turns)}] {turn.arm.name}, seed {turn.settings.seed}"
        print(f"{said}: training", flush=True)
        began = time.monotonic()
        code = _train(folder, turn)
        if code:
            log = folder / "arms" / f"{turn.name}.log"
            print(f"Arm {turn.arm.name} failed (exit code {code}):", file=sys.stderr)
            print(_tail(log), file=sys.stderr)
            print(f"All it said: {log}", file=sys.stderr)
            return 2 if code == 2 else 1
        summary = record.read_summary(folder / turn.name)
        print(
            f"{said}: accuracy {summary['eval_accuracy']:.4f}, "
            f"{summary['milliseconds_per_step']:.1f} ms a step, "
            f"{time.monotonic() - began:.0f} s in all",
            flush=True,
        )
    summaries = {
        arm.name: [
            record.read_summary(folder / turn.name) for turn in turns if turn.arm == arm
        ]
        for arm in arms
    }
    comparison = compare(summaries, reference(arms).name)
    text = table(comparison)
    record.write_atomically(folder / TABLE_FILE, text)
    record.write_atomically(folder / JSON_FILE, record.to_json(comparison))
    curves = [
        record.Curve(
            turn.arm.name,
            record.read_metrics(folder / turn.name),
            record.read_evaluations(folder / turn.name),
        )
        for turn in turns
    ]
    drawn = record.draw(folder / PICTURE_FILE, curves)
    print(f"\n{text}\nTable and runs: {folder}")
    cells, note = _cells(comparison)
    runs = {turn.name: turn.arm.name for turn in turns}
    print(f"Report: {report.write_comparison(folder, cells, runs, note)}")
    if drawn:
        print(f"Picture: {folder / PICTURE_FILE}")
    else:
        print("No picture: matplotlib is missing (pip install 'mp_loop[plots]').")
    return 0


def _prove(settings: config.Config) -> int:
    """Takes the steps of both loops side by side; returns the exit code."""
    own = {"keras": {"loop": "keras"}}
    own["custom"] = {"loop": "custom", "keras_arithmetic": True}
    if settings.loss_scale_kind == "dynamic":
        own["custom"]["scale_preset"] = "keras"
    # A compiler may fuse, and so round, the two loops differently.
    jit = "off" if settings.jit_compile == "auto" else settings.jit_compile
    with command.bad_input(ValueError):
        sides = {
            loop: dataclasses.replace(
                settings,
                **values,
                deterministic=True,
                jit_compile=jit,
                head_epochs=0,  # which trains less of the same model
            )
            for loop, values in own.items()
        }
    theirs = experiment.build(sides["keras"])
    ours = experiment.build(sides["custom"])

    def batches() -> Iterator[Any]:
        for epoch in itertools.count():
            yield from ours.batches(epoch)

    from mp_loop import exact

    proof = exact.prove(ours.step, theirs.step, batches(), ours.total_steps)
    print(proof)
    return 0 if proof.difference is None else 1


def parse_arms(text: str, precision: str) -> list[Arm]:
    """Reads `--arms`.

    Raises:
      UsageError: an arm is malformed or named twice.
    """
    arms = []
    for word in (text or f"custom:{precision},keras:{precision}").split(","):
        loop, _, name = word.strip().partition(":")
        if loop not in config.LOOPS or name not in config.PRECISIONS:
            raise command.UsageError(
                f"--arms ({text}) must be loop:precision parted by commas, not "
                f"'{word}'; loops: {', '.join(config.LOOPS)}; precisions: "
                f"{', '.join(config.PRECISIONS)}."
            )
        arm = Arm(loop, name)
        if arm in arms:
            raise command.UsageError(f"--arms ({text}) names {arm.name} twice.")
        arms.append(arm)
    return arms


def plan(settings: config.Config, arms: Sequence[Arm], repeats: int) -> list[Turn]:
    """Every run, in order: the arms take turns, so that drifts meet them alike.

    Raises:
      UsageError: an arm cannot do what the flags ask for, or the folder is not
        named, or holds something already.
    """
    if settings.resume:
        raise command.UsageError(
            "--resume (True) must not be given: a comparison starts anew."
        )
    if not settings.output_dir:
        raise command.UsageError("--output_dir must name a folder for the comparison.")
    folder = pathlib.Path(settings.output_dir)
    turns = []
    for repeat in range(repeats):
        for arm in arms:
            turn = Turn(arm, repeat, settings)
            try:
                own = dataclasses.replace(
                    settings,
                    loop=arm.loop,
                    precision=arm.precision,
                    output_dir=str(folder / turn.name),
                    seed=settings.seed + repeat,
                )
            except ValueError as error:
                raise command.UsageError(f"Arm {arm.name}: {error}") from error
            turns.append(dataclasses.replace(turn, settings=own))
    return turns


def reference(arms: Sequence[Arm]) -> Arm:
    """The arm that the others are measured by: the first of Keras, or the first."""
    return next((arm for arm in arms if arm.loop == "keras"), arms[0])


@dataclasses.dataclass(frozen=True)
class Measure:
    """One row of the table.

    `name` is the key in summary.json; `ratio` asks for a second row, each run
    divided by the reference's run of the same repeat.
    """

    name: str
    title: str
    show: Callable[[float], str]
    ratio: bool = False


MEASURES = (
    Measure("eval_accuracy", "accuracy", "{:.4f}".format),
    Measure("eval_loss", "loss", "{:.4f}".format),
    Measure("skipped_steps", "skipped steps", "{:g}".format),
    Measure("final_loss_scale", "final loss scale", chart.power_of_two),
    Measure("milliseconds_per_step", "ms/step", "{:.2f}".format, ratio=True),
    Measure("examples_per_second", "examples/s", "{:.0f}".format, ratio=True),
    Measure(
        "peak_memory_bytes",
        "peak memory, MiB",
        lambda value: f"{value / 2**20:.0f}",
        ratio=True,
    ),
)


def compare(
    summaries: Mapping[str, Sequence[Mapping[str, Any]]], reference_arm: str
) -> dict[str, Any]:
    """Reduces the summaries of all runs to medians, ranges and paired ratios.

    Args:
      summaries: for each arm its summaries, one per repeat, in order.
      reference_arm: the arm whose runs the ratios divide by.

    Returns:
      `{"reference": arm, "arms": {arm: {"runs": [...], "measures": {name:
      spread}, "ratios": {name: spread}}}}`, a spread being `median`, `min` and
      `max` over the repeats.
    """
    arms = {}
    for arm, runs in summaries.items():
        pairs = list(zip(runs, summaries[reference_arm], strict=True))
        arms[arm] = {
            "measures": {
                measure.name: _spread([run[measure.name] for run in runs])
                for measure in MEASURES
            },
            "ratios": {
                measure.name: _spread(
                    [_ratio(run[measure.name], by[measure.name]) for run, by in pairs]
                )
                for measure in MEASURES
                if measure.ratio
            },
            "runs": [dict(run) for run in runs],
        }
    return {"reference": reference_arm, "arms": arms}


def table(comparison: Mapping[str, Any]) -> str:
    """Lays a comparison out as a Markdown table that a terminal shows well."""
    rows, note = _cells(comparison)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, [f"{'-' * (width - 1)}:" for width in widths])
    rows[1][0] = "-" * widths[0]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [
            cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", note, ""])


def _cells(comparison: Mapping[str, Any]) -> tuple[list[list[str]], str]:
    """The rows of the table, its head first, and the note below it."""
    arms = comparison["arms"]
    rows = [["", *arms]]
    for measure in MEASURES:
        cells = [arm["measures"][measure.name] for arm in arms.values()]
        rows.append([measure.title, *(_cell(cell, measure.show) for cell in cells)])
    for measure in MEASURES:
        if measure.ratio:
            cells = [arm["ratios"][measure.name] for arm in arms.values()]
            title = f"{measure.title.split(',')[0]}, ratio"
            rows.append([title, *(_cell(cell, "{:.3f}".format) for cell in cells)])
    repeats = len(next(iter(arms.values()))["runs"])
    note = f"Ratios: divided by {comparison['reference']}"
    if repeats > 1:
        note = f"Median (smallest to largest) of {repeats} runs. {note}, run by run"
    return rows, f"{note}."


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest; all NaN where one value is not a number."""
    if any(math.isnan(value) for value in values):
        return dict.fromkeys(("median", "min", "max"), math.nan)
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }


def _ratio(value: float, by: float) -> float:
    return value / by if by else math.nan


def _cell(spread: Mapping[str, float], show: Callable[[float], str]) -> str:
    median, low, high = (show(spread[name]) for name in ("median", "min", "max"))
    return median if low == high else f"{median} ({low} to {high})"


def _train(folder: pathlib.Path, turn: Turn) -> int:
    """Makes one run in a process of its own; returns its exit code."""
    flagfile = folder / "arms" / f"{turn.name}.flags"
    record.write_atomically(flagfile, turn.settings.to_flagfile())
    words = [sys.executable, "-m", "mp_loop.train", f"--flagfile={flagfile}"]
    with open(folder / "arms" / f"{turn.name}.log", "wb") as log:
        return subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
        ).returncode


def _tail(log: pathlib.Path) -> str:
    """The last lines of a log; of a line that was redrawn, what was seen last."""
    text = log.read_bytes().decode("utf-8", errors="replace")
    lines = [line.rstrip("\r").split("\r")[-1] for line in text.split("\n")]
    return "\n".join([line for line in lines if line.strip()][-_LINES_OF_A_FAILURE:])


if __name__ == "__main__":
    command.main(run, declare)
