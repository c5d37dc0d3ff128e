"""Trains a model: `python -m mp_loop.train --flagfile=exp.flags`.

Flags are the fields of `mp_loop.config.settings.Config`; a later flag overrides an
earlier one; with --resume the flags of the run are the defaults. Exit codes:

    0    done
    1    the training diverged
    2    bad input: one line on stderr, nothing written
    3    the run folder could not be written; the line says where the state is
    75   another worker was lost: start all again with --resume
    130  SIGINT, a checkpoint was saved
    143  SIGTERM, a checkpoint was saved

After 3, 130 and 143 the last line is the command that continues the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from typing import TYPE_CHECKING, Any

from mp_loop.cli import app, outcomes, resume, signals
from mp_loop.config import errors, settings
from mp_loop.distributed import cluster
from mp_loop.hardware import environment
from mp_loop.rendering import figures, tables
from mp_loop.report import run_page, training_plot
from mp_loop.run import build, locking, records, run_folder

if TYPE_CHECKING:
    from mp_loop.run import experiment


def run(config: settings.Config, flag_values: Any) -> int:
    """Runs one experiment; returns the exit code."""
    try:
        return _run_locked(config, flag_values)
    except Exception as error:
        lost = _lost_worker(config, error)
        if not lost:
            raise
        return outcomes.worker_lost(lost).tell()


def _lost_worker(config: settings.Config, error: Exception) -> str:
    """What an error says of a worker that did not come or is gone; if nothing, ''."""
    if config.parallel.strategy != "multi_worker" or isinstance(
        error, errors.UsageError
    ):
        return ""
    if isinstance(error, cluster.WorkerLost):
        return str(error)
    from mp_loop.distributed import workers

    return workers.lost_worker(error)


def _run_locked(config: settings.Config, flag_values: Any) -> int:
    """Runs it; meanwhile nobody else can write the run folder."""
    if not config.records.output_dir:
        raise errors.UsageError("--output_dir must name a folder for the run.")
    writes = True
    if config.parallel.strategy == "multi_worker":
        writes = cluster.task().is_chief  # the others write no file
    lock = None
    if writes and config.records.resume:
        config = _settings_to_resume(config, flag_values)
        lock = locking.FolderLock(config.records.output_dir)
    elif writes:
        _refuse_used_folder(config.records.output_dir)
    try:
        return _run(config, lock, writes)
    finally:
        if lock is not None:
            lock.release()


def _run(config: settings.Config, lock: locking.FolderLock | None, writes: bool) -> int:
    """Builds, trains and writes down.

    Args:
      config: lawful settings.
      lock: of the run to be resumed.
      writes: whether this process is the one of all workers that writes files.
    """
    built = build.from_settings(config)
    config = built.config  # --precision=auto resolved
    total_steps = built.total_steps
    if (
        config.training.profile_range
        and config.training.profile_range[0] >= total_steps
    ):
        raise errors.UsageError(
            f"--profile_steps ({config.training.profile_steps}) must begin within the "
            f"{total_steps} steps of the run."
        )
    # With TensorFlow, which takes seconds: a bad flag is told at once.
    from mp_loop.cli import progress
    from mp_loop.distributed import strategies, workers
    from mp_loop.hardware import machine
    from mp_loop.report import numerics_plots
    from mp_loop.run import checkpointing, loop, profiling

    plan = loop.Plan(
        total_steps=total_steps,
        steps_per_epoch=built.steps_per_epoch,
        batch_size=config.data.batch_size,
        steps_per_call=config.training.steps_per_call,
        log_every=config.training.log_every,
        eval_every=config.training.eval_every,
        checkpoint_every=config.training.checkpoint_every,
        diverged_after=config.training.diverged_after,
        on_stuck=config.training.on_stuck,
        rollback=config.training.rollback,
        inspect_every=config.training.inspect_every,
        profile_range=config.training.profile_range,
    )
    out: run_folder.RunFolder | None = None

    def enter(phase: int) -> Any:
        """Enters the largest phase that any worker passes: building is collective."""
        nonlocal built
        built = built.in_phase(built.workers.largest(phase))
        return built.step.state

    def follow() -> None:
        """Enters what the chief's checkpoints make it enter, until it stays."""
        before = None
        while built.phase != before:
            before = built.phase
            enter(0)

    checkpoints = checkpointing.Checkpoints(
        os.path.join(config.records.output_dir, "checkpoints"),
        built.step.state,
        config.records.keep_checkpoints,
        config.records.best_by,
        before_publishing=lambda: out.sync(),
        rescue_folder=lambda: out.rescue("a checkpoint cannot be written"),
        enter=enter,
    )
    flagfile = config.replace(resume=False, change_precision=False).to_flagfile()
    done = 0
    with errors.bad_input(
        checkpointing.CheckpointError,
        errors.RecordError,
        OSError,
        flag="output_dir",
        value=config.records.output_dir,
    ):
        if not writes:
            out = checkpoints = strategies.Silence()
        elif config.records.resume:
            done = checkpoints.restore(convert=config.records.change_precision)
            _refuse_the_past(config, done, total_steps)
            if checkpoints.converted:
                built.step.reload()
            built.step.export()
            out = run_folder.RunFolder.reopen(
                config.records.output_dir, flagfile, done, lock
            )
            checkpoints.forget_after(done)
        else:
            out = run_folder.RunFolder.create(config.records.output_dir, flagfile)
    slower = machine.slowdown_warning(config.precision.precision)
    if slower:
        print(f"Warning: {slower}", file=sys.stderr)
    if writes:
        enter(built.phase)  # to stay
    else:
        follow()
    built.workers.copy_from_first(list(built.step.state.named().values()))

    if writes and not done:
        out.log_setup(config.values(), _graph(built))
    done = int(built.step.state.step.numpy())  # every worker's, after the chief's
    shown = progress.Progress(total_steps, done, config.records.quiet or not writes)
    profile = profiling.Profile(
        os.path.join(config.records.output_dir, "tensorboard"),
        config.training.profile_range if writes else None,
    )
    try:
        with signals.stop_requested() as stop_requested:
            results = []
            for phase in range(built.phase, len(built.phase_ends)):
                if phase != built.phase:
                    checkpoints.begin(phase, enter(phase))
                    checkpoints.save(results[-1].evaluation)
                results.append(
                    loop.train(
                        built.step,
                        built.batches,
                        built.evaluate,
                        out,
                        dataclasses.replace(plan, total_steps=built.phase_ends[phase]),
                        checkpoints,
                        shown,
                        lambda: built.workers.largest(stop_requested()),
                        witness=_witness(built, out),
                        profile=profile,
                    )
                )
    except loop.TrainingDiverged as error:
        shown.close()
        outcome = outcomes.diverged(error)
        _report(out, outcome.message)
        return outcome.tell()
    except workers.ReplicasDiffer as error:
        return outcomes.replicas_differ(error).tell()
    except loop.Interrupted as stop:
        shown.close()
        _report(out, f"Interrupted at step {stop.step}.")
        return outcomes.interrupted(
            stop.step, stop.number, config.records.output_dir
        ).tell()
    except checkpointing.SaveError as error:
        shown.close()
        return outcomes.folder_lost(
            config.records.output_dir, error, error.rescued
        ).tell()
    finally:
        shown.close()
        profile.close()
        with contextlib.suppress(checkpointing.SaveError):  # told already
            checkpoints.wait()
        out.close()
    if not writes:
        return 0

    result = results[-1]
    summary = {
        **dataclasses.asdict(result),
        **result.evaluation,
        "train_seconds": sum(part.train_seconds for part in results),
        "peak_memory_bytes": environment.peak_memory_bytes(),
        "precision": config.precision.precision,
        "loop": config.precision.loop,
        "dataset": config.data.dataset,
        "model": config.model.model,
        "parameters": built.model.count_params(),
        "seed": config.training.seed,
    }
    del summary["evaluation"]
    try:
        out.write_model(built.step.export())
        out.write_summary(summary)
        picture = training_plot.draw_run(out.folder)
        looks = records.read_numerics(out.folder)
        if looks:
            numerics_plots.draw_steps(out.folder / "numerics.png", looks)
    except OSError as error:
        return outcomes.results_not_written(config.records.output_dir, error).tell()
    page = _report(out)
    if not config.records.quiet:
        print(_table(summary))
        print(f"Model, metrics and checkpoints: {config.records.output_dir}")
        print(f"Picture: {picture}" if picture else f"No picture: {figures.MISSING}")
        print(f"Report: {page}")
    return 0


def _witness(built: experiment.Experiment, out: run_folder.RunFolder) -> Any:
    """Watches our own step on one device, of which a probe can take all back."""
    config = built.config
    if config.precision.loop != "custom" or config.parallel.strategy != "none":
        return None
    from mp_loop.numerics import probe
    from mp_loop.run import watcher

    return watcher.Witness(
        probe.Probe(built.step),
        built.batches,
        built.steps_per_epoch,
        out,
        config.training.explain_skips,
    )


def _graph(built: experiment.Experiment) -> Any:
    """The graph of a step, as the first batch will trace it; None under a strategy."""
    import tensorflow as tf

    batches = built.batches(0)
    whole = isinstance(batches, tf.data.Dataset)
    return built.step.graph(*batches.element_spec) if whole else None


def _report(out: run_folder.RunFolder, note: str = "") -> str | None:
    """Writes the report; a run is not lost because that cannot be done."""
    if not isinstance(out, run_folder.RunFolder):
        return None  # a worker that writes no file
    try:
        return run_page.write(out.folder, note)
    except errors.RecordError as error:
        print(f"No report: {error}", file=sys.stderr)
        return None


def _refuse_used_folder(folder: str) -> None:
    if os.path.exists(os.path.join(folder, "flags.txt")):
        raise errors.UsageError(
            f"--output_dir ({folder}) already holds a run: add --resume to continue "
            "it, or choose another folder."
        )


def _settings_to_resume(config: settings.Config, flag_values: Any) -> settings.Config:
    """Returns the settings of a resumed run: its own, and what may change.

    Args:
      config: what the command line says.
      flag_values: parsed flags, which tell what was said at all; None: everything.

    Raises:
      UsageError: there is no run, or a flag contradicts it.
    """
    path = os.path.join(config.records.output_dir, "flags.txt")
    if not os.path.exists(path):
        raise errors.UsageError(
            f"--output_dir ({config.records.output_dir}) holds no run to resume."
        )
    before, _ = app.parse(["train", f"--flagfile={path}"])
    return resume.continued_run(before, config, flag_values)


def _refuse_the_past(config: settings.Config, done: int, total_steps: int) -> None:
    if done > total_steps:
        flag = "steps" if config.training.steps else "epochs"
        raise errors.UsageError(
            f"--{flag} ({config.values()[flag]}) ends at step {total_steps}, before "
            f"the checkpoint, which is of step {done}."
        )


def _table(summary: dict[str, Any]) -> str:
    """Lays the results out for the terminal."""
    rows = [
        ("accuracy", f"{summary['eval_accuracy']:.4f}"),
        ("loss", f"{summary['eval_loss']:.4f}"),
        ("steps", f"{summary['steps']} ({summary['skipped_steps']} skipped)"),
        ("loss scale", f"{summary['final_loss_scale']:g}"),
        ("time per step", f"{summary['milliseconds_per_step']:.1f} ms"),
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


if __name__ == "__main__":
    app.main(run)
