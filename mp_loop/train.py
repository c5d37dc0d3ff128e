"""Trains a model: `python -m mp_loop.train --flagfile=exp.flags`.

Flags are the fields of `mp_loop.config.settings.Config`; a later flag overrides an
earlier one; with --resume the flags of the run are the defaults. Exit codes:

    0    done
    1    the training diverged
    2    bad input: one line on stderr, nothing written
    3    the run folder could not be written; the line says where the state is
    75   another worker was lost: start all again with --resume
    129  SIGHUP (the terminal was closed), a checkpoint was saved
    130  SIGINT, a checkpoint was saved
    143  SIGTERM, a checkpoint was saved

After 3, 129, 130 and 143 the last line is the command that continues the run.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from absl import flags

from mp_loop.cli import app, outcomes, progress, resume, signals, summary_table
from mp_loop.config import errors, json_values, settings
from mp_loop.distributed import cluster
from mp_loop.rendering import figures
from mp_loop.report import numerics_plots, recorded_runs, run_page, training_plot
from mp_loop.run import build, input_hint, locking, records, run_folder

if TYPE_CHECKING:  # They import TensorFlow, which takes seconds.
    from mp_loop.run import callbacks, loop, session


def run(config: settings.Config, flag_values: flags.FlagValues | None) -> int:
    """Runs one experiment; returns the exit code."""
    try:
        return _run(config, flag_values)
    except Exception as error:
        lost = _lost_worker(config, error)
        if not lost:
            raise
        return outcomes.worker_lost(lost).tell()


def _run(config: settings.Config, flag_values: flags.FlagValues | None) -> int:
    """Locks the folder, builds the experiment, trains it."""
    if not config.records.output_dir:
        raise errors.UsageError("--output_dir must name a folder for the run.")
    has_files = True
    if config.parallel.strategy == "multi_worker":
        has_files = cluster.task().is_chief
    with contextlib.ExitStack() as held:
        lock = None
        config = resume.resolved(config, records.FLAGS_FILE)
        if has_files and config.records.resume:
            config = resume.read_run(config, flag_values)
            lock = held.enter_context(locking.FolderLock(config.records.output_dir))
        elif has_files:
            run_folder.refuse_used(config.records.output_dir)
        built = build.from_settings(config)
        # They import TensorFlow: a bad flag is refused at once.
        from mp_loop.hardware import machine
        from mp_loop.run import callbacks, session

        called = None
        if has_files:
            called = callbacks.of_function(built.config.records.callbacks, built)
        current = held.enter_context(session.Session(built, lock, has_files))
        slower = machine.slowdown_note(built.config.precision.precision)
        if slower and not config.records.quiet:
            print(f"Note: {slower}", file=sys.stderr)
        current.begin()
        if note := current.schedule_note():
            print(f"Note: {note}", file=sys.stderr)
        if current.coverage and not config.records.quiet:
            print(current.coverage, file=sys.stderr)
        return _train(current, called)


def _train(current: session.Session, called: callbacks.Callbacks | None) -> int:
    """Trains, and tells how that ended; returns the exit code."""
    from mp_loop.data import batching
    from mp_loop.distributed import workers
    from mp_loop.run import checkpointing, divergence, loop

    config = current.experiment.config
    output_dir = config.records.output_dir
    quiet = config.records.quiet or not current.has_files
    total_steps = current.experiment.total_steps
    shown = progress.Progress(
        total_steps, current.done, quiet, current.experiment.metric.key
    )

    def on_log(line: json_values.Object) -> None:
        shown(line)
        if called is not None:
            called(line)

    try:
        with contextlib.ExitStack() as told:
            if called is not None:
                told.callback(called.close)
            told.callback(shown.close)
            stop_requested = told.enter_context(signals.stop_requested())
            result = current.train(on_log, stop_requested, shown.first_steps)
    except divergence.TrainingDiverged as error:
        ended = outcomes.diverged(error)
        _write_report(current, ended.message)
    except workers.ReplicasDiffer as error:
        ended = outcomes.replicas_differ(error)
    except loop.Interrupted as stop:
        ended = outcomes.interrupted(stop.step, stop.number, output_dir)
        _write_report(current, f"Interrupted at step {stop.step}.")
    except checkpointing.SaveError as error:
        ended = outcomes.folder_lost(output_dir, error, error.rescued)
    except Exception as error:
        reason = batching.why_unreadable(error)
        if not reason:
            raise
        ended = outcomes.data_lost(reason, output_dir)
        _write_report(current, ended.message)
    else:
        return _write_results(current, result) if current.has_files else outcomes.DONE
    return ended.tell()


def _write_results(current: session.Session, result: loop.Result) -> int:
    """Writes what a finished run leaves, and shows it; returns the exit code."""
    folder = current.writer.folder
    own = current.experiment.config.records
    try:
        summary = current.write_results(result)
        recorded = recorded_runs.RecordedRun.read(folder)
        picture = training_plot.draw_run(folder, recorded)
        if recorded.looks:
            numerics_plots.draw_steps(folder / "numerics.png", recorded.looks)
    except OSError as error:
        return outcomes.results_not_written(own.output_dir, error).tell()
    page = _write_report(current, recorded=recorded)
    if not own.quiet:
        print(summary_table.text(summary))
        if hint := input_hint.text(recorded.metrics):
            print(f"Note: {hint}", file=sys.stderr)
        print(f"Model, metrics and checkpoints: {own.output_dir}")
        print(f"Picture: {picture}" if picture else f"No picture: {figures.MISSING}")
        print(f"Report: {page}")
    return outcomes.DONE


def _write_report(
    current: session.Session,
    note: str = "",
    recorded: recorded_runs.RecordedRun | None = None,
) -> str | None:
    """Writes the report; a run is not lost because that cannot be done."""
    if not current.has_files:
        return None
    try:
        return run_page.write(current.writer.folder, note, recorded)
    except errors.RecordError as error:
        print(f"No report: {error}", file=sys.stderr)
        return None


def _lost_worker(config: settings.Config, error: Exception) -> str:
    """Describes the worker that an error says is lost, or ''."""
    if config.parallel.strategy != "multi_worker":
        return ""
    if isinstance(error, errors.UsageError):
        return ""
    if isinstance(error, cluster.WorkerLost):
        return str(error)
    from mp_loop.distributed import workers

    return workers.lost_worker(error)


if __name__ == "__main__":
    app.main(run)
