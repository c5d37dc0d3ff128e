"""Compares loops and precisions: `python -m mp_loop.compare --flagfile=exp.flags`.

Every arm (a loop and a precision, for example keras:float16) trains in processes of
its own, `--repeats` times; the arms take turns. `--output_dir` gets the run folders,
one table (comparison.md, comparison.json), the curves (comparison.png), the report
(report.html) and, with two repeats or more, the differences in accuracy
(equivalence.png). Repeat k of every arm uses the seed --seed + k, so that repeats
differ and arms are paired: same initial weights, same order of the data.

With --margin each arm is tested for equal accuracy: two one-sided t-tests over the
paired runs. Margin, arms and repeats are written down (design.json) before the first
run. --resume continues a comparison that was stopped, and adds arms or repeats to one
that is finished.

With --exact nothing is timed or written. Our loop, with Keras' arithmetic and Keras'
loss-scale rule, and Keras' loop take the same steps side by side (--steps, or
--epochs), and every bit is compared after each step; the first step and variable that
differ are named. Set --initial_scale high to see overflows.

Exit codes: 0 done, 1 an arm failed or a bit differs, 2 bad input (one line on
stderr, nothing written), 129, 130 or 143 stopped by SIGHUP, SIGINT or SIGTERM.
"""

from __future__ import annotations

import pathlib
import shlex
import time
from collections.abc import Sequence

from absl import flags

from mp_loop.cli import app, folders, outcomes, resume, signals
from mp_loop.comparison import designs, output, runs, side_by_side
from mp_loop.config import errors, names, settings
from mp_loop.hardware import startup
from mp_loop.run import build, locking, records


def declare(flag_values: flags.FlagValues) -> None:
    """Declares the flags of this command alone."""
    flags.DEFINE_integer(
        "repeats", 3, "Runs of each arm.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_string(
        "arms",
        "",
        "Comma-separated arms, loop:precision; the others are compared with the first "
        "Keras arm. Default: custom:P,keras:P with P = --precision.",
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
        "Prove on this model and data that our loop equals Keras' to the bit.",
        flag_values=flag_values,
    )


def run(config: settings.Config, flag_values: flags.FlagValues) -> int:
    """Runs the comparison; returns the exit code."""
    names.check(config)
    config = resume.resolved(config, designs.FILE)
    resumes = config.records.resume and not flag_values.exact
    if config.precision.precision == "auto" and not resumes:
        with startup.quiet_start():
            config = build.resolve_precision(config)
    if flag_values.exact:
        proof = side_by_side.prove(config)
        print(proof)
        return outcomes.FAILED if proof.difference else outcomes.DONE
    if resumes:
        return _resume(config, flag_values)
    arms = designs.parse_arms(flag_values.arms, config.precision.precision)
    design = designs.Design(
        config, tuple(arms), flag_values.repeats, flag_values.margin
    ).revised()
    planned = runs.plan(config, design.arms, design.repeats)
    folder = folders.create(config.records.output_dir, "a comparison without --resume")
    return _run_locked(folder, locking.FolderLock(folder), design, planned)


def _resume(config: settings.Config, flag_values: flags.FlagValues) -> int:
    """Continues a comparison; returns the exit code."""
    if not config.records.output_dir:
        raise errors.UsageError("--output_dir must name the comparison to resume.")
    folder = pathlib.Path(config.records.output_dir)
    before = designs.Design.read(folder)
    lock = locking.FolderLock(folder)
    try:
        design = designs.extended(before, config, flag_values)
        planned = runs.plan(design.config, design.arms, design.repeats)
        design = design.revised(after_results=(folder / output.JSON_FILE).exists())
    except BaseException:
        lock.release()
        raise
    return _run_locked(folder, lock, design, planned)


def _run_locked(
    folder: pathlib.Path,
    lock: locking.FolderLock,
    design: designs.Design,
    planned: Sequence[runs.PlannedRun],
) -> int:
    """Makes the missing runs, then the table; returns the exit code."""
    try:
        design.write(folder)  # before any result exists
        code = _make_runs(folder, planned)
        if not code:
            print(f"\n{output.write(folder, design, planned)}")
        return code
    finally:
        lock.release()


def _make_runs(folder: pathlib.Path, planned: Sequence[runs.PlannedRun]) -> int:
    """Makes every run that is not finished; returns the exit code."""
    words = ["python", "-m", "mp_loop.compare", f"--output_dir={folder}", "--resume"]
    continue_with = f"Continue with: {shlex.join(words)}"
    with signals.stop_requested() as stop_requested:
        for number, one in enumerate(planned, start=1):
            seed = one.config.training.seed
            said = f"[{number}/{len(planned)}] {one.arm.name}, seed {seed}"
            began = time.monotonic()
            finished = runs.is_finished(folder, one)
            if not finished:
                print(f"{said}: training", flush=True)
            try:
                summary = runs.complete(folder, one, stop_requested)
            except runs.Stopped as stop:
                code = outcomes.signal_code(stop.number)
                return outcomes.Outcome(code, f"Interrupted. {continue_with}").tell()
            except runs.RunFailed as failure:
                refused = failure.code == outcomes.BAD_INPUT
                code = outcomes.BAD_INPUT if refused else outcomes.FAILED
                return outcomes.Outcome(code, f"{failure}\n{continue_with}").tell()
            took = "before" if finished else f"{time.monotonic() - began:.0f} s in all"
            key = records.metric_key(summary)
            print(
                f"{said}: {records.metric_title(key)} {summary[key]:.4f}, "
                f"{summary['milliseconds_per_step']:.1f} ms/step, {took}",
                flush=True,
            )
    return outcomes.DONE


if __name__ == "__main__":
    app.main(run, declare)
