"""Compares loops and precisions: `python -m mp_loop.compare --flagfile=exp.flags`.

Every arm (a loop and a precision, say keras:float16) trains in processes of its
own, `--repeats` times, taking turns. `--output_dir` gets the run folders, one
table (comparison.md, comparison.json), the curves (comparison.png) and, of two
repeats or more, the differences in accuracy (equivalence.png). Repeat k of every arm
uses the seed --seed + k, so that repeats differ and arms are paired: same initial
weights, same order of the data.

With --margin each arm is tested for equal accuracy: two one-sided t-tests over the
paired runs. Margin, arms and repeats are written down (design.json) before the first
run. --resume goes on with a comparison that was stopped, and adds arms or repeats to
one that is done.

With --exact nothing is timed or written. Our loop, with Keras' arithmetic and
Keras' rule, and Keras' loop take the same steps side by side (--steps, or
--epochs), and every bit is compared after each; the first step and variable that
differ are named. Set --initial_scale high to see overflows.

Exit codes: 0 done, 1 an arm failed or a bit differs, 2 bad input (one line on
stderr, nothing written), 130 or 143 stopped by SIGINT or SIGTERM.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from mp_loop.cli import app, resume
from mp_loop.comparison import equivalence, forest_plot
from mp_loop.config import choices, errors, settings
from mp_loop.hardware import startup
from mp_loop.rendering import numbers
from mp_loop.report import plots, run_page
from mp_loop.run import experiment, record

TABLE_FILE = "comparison.md"
JSON_FILE = "comparison.json"
PICTURE_FILE = "comparison.png"
FOREST_FILE = "equivalence.png"
DESIGN_FILE = "design.json"

_LINES_OF_A_FAILURE = 15
# What a resumed comparison may change besides arms and repeats: no number hangs on it.
_MAY_CHANGE = ("data_dir", "output_dir", "quiet", "resume")


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
    config: settings.Config

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return f"{self.arm.slug}-{self.repeat}"


@dataclasses.dataclass(frozen=True)
class Stage:
    """Arms and repeats as they were decided at one time.

    `after_results` tells whether a table of fewer runs was there to be seen.
    """

    date: str
    arms: tuple[str, ...]
    repeats: int
    after_results: bool = False


@dataclasses.dataclass(frozen=True)
class Design:
    """What a comparison is; written down before its first run.

    Attributes:
      config: of every run, apart from what its arm and repeat change.
      arms: in the order of the table.
      repeats: of each arm.
      margin: the largest difference in accuracy that counts as none; 0: no test.
      stages: how arms and repeats came to be what they are.
    """

    config: settings.Config
    arms: tuple[Arm, ...]
    repeats: int
    margin: float
    stages: tuple[Stage, ...] = ()

    def staged(self, after_results: bool = False) -> Design:
        """With arms and repeats noted as decided now, unless they were before."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds")
        names = tuple(arm.name for arm in self.arms)
        stage = Stage(now, names, self.repeats, after_results)
        if self.stages:
            last = self.stages[-1]
            if (last.arms, last.repeats) == (stage.arms, stage.repeats):
                return self
        return dataclasses.replace(self, stages=(*self.stages, stage))

    def write(self, folder: pathlib.Path) -> None:
        """Writes design.json."""
        text = record.to_json(
            {
                "margin": self.margin,
                "reference": reference(self.arms).name,
                "stages": [dataclasses.asdict(stage) for stage in self.stages],
                "flags": self.config.to_flagfile().splitlines(),
            }
        )
        with errors.bad_input(
            OSError, flag="output_dir", value=self.config.records.output_dir
        ):
            record.write_atomically(folder / DESIGN_FILE, text)

    @classmethod
    def read(cls, folder: pathlib.Path) -> Design:
        """Reads design.json.

        Raises:
          UsageError: there is none, or it is not one.
        """
        path = folder / DESIGN_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            stages = [
                Stage(**{**stage, "arms": tuple(stage["arms"])})
                for stage in found["stages"]
            ]
            config, _ = app.parse(["compare", *found["flags"]])
            arms = parse_arms(",".join(stages[-1].arms), config.precision.precision)
            return cls(
                config,
                tuple(arms),
                int(stages[-1].repeats),
                float(found["margin"]),
                tuple(stages),
            )
        except FileNotFoundError:
            raise errors.UsageError(
                f"--output_dir ({folder}) holds no comparison to resume."
            ) from None
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise errors.UsageError(
                f"{path} is not the design of a comparison: {errors.one_line(error)}"
            ) from error


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
    flags.DEFINE_float(
        "margin",
        0.0,
        "The largest difference in accuracy that counts as none, decided before the "
        "runs: 0.005 is half a percentage point. Every arm is tested for equivalence "
        "with the reference; 0: no test.",
        lower_bound=0.0,
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "exact",
        False,
        "Prove on this model and data that our loop is Keras' to the bit.",
        flag_values=flag_values,
    )


def run(config: settings.Config, flag_values: Any) -> int:
    """Runs the comparison; returns the exit code."""
    if config.precision.precision == "auto" and (
        flag_values.exact or not config.records.resume
    ):
        with startup.quiet_start():
            config = experiment.resolved(config)
    if flag_values.exact:
        return _prove(config)
    if config.records.resume:
        return _resume(config, flag_values)
    design = Design(
        config,
        tuple(parse_arms(flag_values.arms, config.precision.precision)),
        flag_values.repeats,
        flag_values.margin,
    ).staged()
    _refuse_untestable(design)
    turns = plan(config, design.arms, design.repeats)
    folder = app.new_folder(config.records.output_dir, "a comparison without --resume")
    return _run_locked(folder, record.Lock(folder), design, turns)


def _resume(config: settings.Config, flag_values: Any) -> int:
    """Goes on with a comparison; returns the exit code."""
    if not config.records.output_dir:
        raise errors.UsageError("--output_dir must name the comparison to resume.")
    folder = pathlib.Path(config.records.output_dir)
    before = Design.read(folder)
    lock = record.Lock(folder)
    try:
        design = continued(before, config, flag_values)
        _refuse_untestable(design)
        turns = plan(design.config, design.arms, design.repeats)
        design = design.staged((folder / JSON_FILE).exists())
    except BaseException:
        lock.release()
        raise
    return _run_locked(folder, lock, design, turns)


def continued(before: Design, config: settings.Config, flag_values: Any) -> Design:
    """The design of a resumed comparison: as it was, and what is added.

    Args:
      before: as it was written down.
      config: what the command line says.
      flag_values: parsed flags, which tell what was said at all.

    Raises:
      UsageError: a flag contradicts what was written down.
    """
    if config.precision.precision == "auto":
        config = config.at_precision(before.config.precision.precision)
    given = resume.settings_given(config, flag_values)
    margin = {"margin": flag_values.margin} if flag_values["margin"].present else {}
    resume.refuse_changes(
        before.config.values() | {"margin": before.margin},
        given | margin,
        _MAY_CHANGE,
        "comparison",
    )
    repeats = flag_values.repeats if flag_values["repeats"].present else before.repeats
    if repeats < before.repeats:
        raise errors.UsageError(
            f"--repeats ({repeats}) must be at least {before.repeats}, as in the "
            "comparison to be resumed."
        )
    arms = before.arms
    if flag_values["arms"].present:
        arms = tuple(parse_arms(flag_values.arms, before.config.precision.precision))
    missing = [arm.name for arm in before.arms if arm not in arms]
    if missing:
        raise errors.UsageError(
            f"--arms ({flag_values.arms}) must name {', '.join(missing)} too, as in "
            "the comparison to be resumed."
        )
    if reference(arms) != reference(before.arms):
        raise errors.UsageError(
            f"--arms ({flag_values.arms}) must leave {reference(before.arms).name} the "
            f"reference, not {reference(arms).name}."
        )
    own = before.config.replace(**(given | {"resume": False}))
    return Design(own, arms, repeats, before.margin, before.stages)


def _refuse_untestable(design: Design) -> None:
    """Raises UsageError where a margin is given that cannot be tested."""
    said = f"--margin ({design.margin:g})"
    if not math.isfinite(design.margin):
        raise errors.UsageError(f"{said} must be finite.")
    if design.margin and design.repeats < 2:
        raise errors.UsageError(
            f"{said} needs --repeats ({design.repeats}) of at least 2: one pair of "
            "runs has no spread to test by."
        )
    if design.margin and len(design.arms) < 2:
        raise errors.UsageError(
            f"{said} needs --arms ({design.arms[0].name}) of at least 2: nothing is "
            "compared with the reference."
        )


def _run_locked(
    folder: pathlib.Path, lock: record.Lock, design: Design, turns: Sequence[Turn]
) -> int:
    """Makes what runs are missing and writes down what came of all; the exit code."""
    try:
        design.write(folder)  # before any result is there
        code = _take_turns(folder, turns)
        if not code:
            _conclude(folder, design, turns)
        return code
    finally:
        lock.release()


def _take_turns(folder: pathlib.Path, turns: Sequence[Turn]) -> int:
    """Makes every run that is not finished; returns the exit code."""
    (folder / "arms").mkdir(exist_ok=True)
    continue_with = (
        f"Continue with: python -m mp_loop.compare --output_dir={folder} --resume"
    )
    with app.stop_requested() as stop_requested:
        for number, turn in enumerate(turns, start=1):
            seed = turn.config.training.seed
            said = f"[{number}/{len(turns)}] {turn.arm.name}, seed {seed}"
            began = time.monotonic()
            done = (folder / turn.name / record.SUMMARY_FILE).exists()
            if not done:
                print(f"{said}: training", flush=True)
                code = _train(folder, turn, stop_requested)
                if stopped := stop_requested():
                    print(f"Interrupted. {continue_with}", file=sys.stderr)
                    return 128 + stopped
                if code:
                    log = folder / "arms" / f"{turn.name}.log"
                    name = turn.arm.name
                    print(f"Arm {name} failed (exit code {code}):", file=sys.stderr)
                    print(_tail(log), file=sys.stderr)
                    print(f"All it said: {log}\n{continue_with}", file=sys.stderr)
                    return 2 if code == 2 else 1
            elif not (folder / turn.name / run_page.FILE).exists():
                run_page.write(folder / turn.name)  # killed just before
            summary = record.read_summary(folder / turn.name)
            took = "before" if done else f"{time.monotonic() - began:.0f} s in all"
            print(
                f"{said}: accuracy {summary['eval_accuracy']:.4f}, "
                f"{summary['milliseconds_per_step']:.1f} ms a step, {took}",
                flush=True,
            )
    return 0


def _conclude(folder: pathlib.Path, design: Design, turns: Sequence[Turn]) -> None:
    """Writes table, pictures and report of runs that are all finished."""
    summaries = {
        arm.name: [
            record.read_summary(folder / turn.name) for turn in turns if turn.arm == arm
        ]
        for arm in design.arms
    }
    comparison = compare(summaries, reference(design.arms).name, design.margin)
    comparison["stages"] = [dataclasses.asdict(stage) for stage in design.stages]
    text = table(comparison)
    record.write_atomically(folder / TABLE_FILE, text)
    record.write_atomically(folder / JSON_FILE, record.to_json(comparison))
    curves = [
        plots.Curve(
            turn.arm.name,
            record.read_metrics(folder / turn.name),
            record.read_evaluations(folder / turn.name),
        )
        for turn in turns
    ]
    drawn = plots.draw(folder / PICTURE_FILE, curves)
    results = {
        name: equivalence.Equivalence(**arm["difference"])
        for name, arm in comparison["arms"].items()
        if "difference" in arm
    }
    if drawn and results:
        # --metric may be an error, whose differences are no percentage points.
        share = "accuracy" in design.config.model.metric
        forest_plot.draw(folder / FOREST_FILE, results, comparison["reference"], share)
    print(f"\n{text}\nTable and runs: {folder}")
    cells, note = _cells(comparison)
    runs = {turn.name: turn.arm.name for turn in turns}
    print(f"Report: {run_page.write_comparison(folder, cells, runs, note)}")
    if not drawn:
        print("No picture: matplotlib is missing (pip install 'mp_loop[plots]').")
        return
    print(f"Picture: {folder / PICTURE_FILE}")
    if results:
        print(f"Differences: {folder / FOREST_FILE}")


def _prove(config: settings.Config) -> int:
    """Takes the steps of both loops side by side; returns the exit code."""
    own = {"keras": {"loop": "keras"}}
    own["custom"] = {"loop": "custom", "keras_arithmetic": True}
    if config.loss_scale_kind == "dynamic":
        own["custom"]["scale_preset"] = "keras"
    # A compiler may fuse, and so round, the two loops differently.
    jit = (
        "off" if config.training.jit_compile == "auto" else config.training.jit_compile
    )
    with errors.bad_input(ValueError):
        sides = {
            loop: config.replace(
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

    from mp_loop.comparison import bitwise

    proof = bitwise.prove(ours.step, theirs.step, batches(), ours.total_steps)
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
        if loop not in choices.LOOPS or name not in choices.PRECISIONS:
            raise errors.UsageError(
                f"--arms ({text}) must be loop:precision parted by commas, not "
                f"'{word}'; loops: {', '.join(choices.LOOPS)}; precisions: "
                f"{', '.join(choices.PRECISIONS)}."
            )
        arm = Arm(loop, name)
        if arm in arms:
            raise errors.UsageError(f"--arms ({text}) names {arm.name} twice.")
        arms.append(arm)
    return arms


def plan(config: settings.Config, arms: Sequence[Arm], repeats: int) -> list[Turn]:
    """Every run, in order: the arms take turns, so that drifts meet them alike.

    Raises:
      UsageError: an arm cannot do what the flags ask for, or the folder is not
        named.
    """
    if not config.records.output_dir:
        raise errors.UsageError("--output_dir must name a folder for the comparison.")
    folder = pathlib.Path(config.records.output_dir)
    turns = []
    for repeat in range(repeats):
        for arm in arms:
            turn = Turn(arm, repeat, config)
            try:
                own = config.replace(
                    loop=arm.loop,
                    precision=arm.precision,
                    output_dir=str(folder / turn.name),
                    seed=config.training.seed + repeat,
                )
            except ValueError as error:
                raise errors.UsageError(f"Arm {arm.name}: {error}") from error
            turns.append(dataclasses.replace(turn, config=own))
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
    Measure("final_loss_scale", "final loss scale", numbers.power_of_two),
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
    summaries: Mapping[str, Sequence[Mapping[str, Any]]],
    reference_arm: str,
    margin: float = 0.0,
) -> dict[str, Any]:
    """Reduces the summaries of all runs to medians, ranges and paired ratios.

    Of two repeats or more, each arm but the reference gets its paired differences in
    accuracy as well, and the test of its equivalence.

    Args:
      summaries: for each arm its summaries, one per repeat, in order.
      reference_arm: the arm whose runs the ratios divide by.
      margin: the largest difference in accuracy that counts as none; 0: no test.

    Returns:
      `{"reference": arm, "margin": margin, "arms": {arm: {"runs": [...], "measures":
      {name: spread}, "ratios": {name: spread}, "difference": fields of
      `equivalence.Equivalence`}}}`, a spread being `median`, `min` and `max` over the
      repeats.
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
        if arm != reference_arm and len(runs) > 1:
            result = equivalence.paired(
                [run["eval_accuracy"] - by["eval_accuracy"] for run, by in pairs],
                margin,
            )
            arms[arm]["difference"] = dataclasses.asdict(result)
    return {"reference": reference_arm, "margin": margin, "arms": arms}


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
    note += "."
    results = [arm.get("difference") for arm in arms.values()]
    if any(results):
        below = [row[0] for row in rows].index("accuracy") + 1
        added, said = _difference_rows(results, comparison["margin"])
        rows[below:below] = added
        note += said + _looks(comparison)
    return rows, note


def _difference_rows(
    results: Sequence[Mapping[str, Any] | None], margin: float
) -> tuple[list[list[str]], str]:
    """The rows about differences, None being the reference's, and their note."""
    row = ["accuracy, difference"]
    for result in results:
        cell = "-"
        if result:
            low, high = map(_signed, result["interval_90"])
            cell = f"{_signed(result['mean'])} ({low} to {high})"
        row.append(cell)
    note = " Differences: mean of the pairs of equal seed (90 % confidence interval)."
    if not margin:
        return [row], note
    tested = [f"equivalent within {margin:g}"]
    tested += [_verdict(result) if result else "-" for result in results]
    note += (
        " Equivalent: two one-sided t-tests at 5 % reject a difference beyond the "
        "margin, which was written down before the runs."
    )
    if any(result and result["repeats_needed"] for result in results):
        note += (
            " Repeats that are likely (80 %) to show it: if there is no difference, "
            "and the spread is the one seen."
        )
    return [row, tested], note


def _verdict(result: Mapping[str, Any]) -> str:
    """The outcome of a test in a few words."""
    if result["verdict"] == equivalence.EQUIVALENT:
        small = result["p"] < 0.001
        return "yes, p < 0.001" if small else f"yes, p = {result['p']:.2g}"
    if result["verdict"] == equivalence.DIFFERENT:
        return "no: different"
    if result["repeats_needed"]:
        return f"not shown (likely by {result['repeats_needed']} repeats)"
    return "not shown"


def _looks(comparison: Mapping[str, Any]) -> str:
    """What is to be said where repeats were added in view of results, or nothing."""
    stages = comparison.get("stages", [])
    counts = [stage["repeats"] for stage in stages[:1]]
    for stage in stages:
        if stage["after_results"] and stage["repeats"] > counts[-1]:
            counts.append(stage["repeats"])
    if len(counts) < 2:
        return ""
    said = ", then ".join(map(str, counts))
    return f" Repeats were added after results were seen ({said}): p is too small then."


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"  # no -0.0000


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


def _train(
    folder: pathlib.Path, turn: Turn, stop_requested: Callable[[], int] = lambda: 0
) -> int:
    """Makes one run, or the rest of it, in a process of its own.

    Args:
      folder: of the comparison.
      turn: what to run.
      stop_requested: the number of a signal that came, which the run is then told, so
        that it saves a checkpoint; 0: none.

    Returns:
      The exit code of the process.
    """
    flagfile = folder / "arms" / f"{turn.name}.flags"
    record.write_atomically(flagfile, turn.config.to_flagfile())
    words = [sys.executable, "-m", "mp_loop.train", f"--flagfile={flagfile}"]
    if (folder / turn.name / record.FLAGS_FILE).exists():
        words.append("--resume")
    with open(folder / "arms" / f"{turn.name}.log", "ab") as log:
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


def _tail(log: pathlib.Path) -> str:
    """The last lines of a log; of a line that was redrawn, what was seen last."""
    text = log.read_bytes().decode("utf-8", errors="replace")
    lines = [line.rstrip("\r").split("\r")[-1] for line in text.split("\n")]
    return "\n".join([line for line in lines if line.strip()][-_LINES_OF_A_FAILURE:])


if __name__ == "__main__":
    app.main(run, declare)
