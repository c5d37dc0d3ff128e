"""One run, from its first file to its last, and everything that it holds.

    with Session(experiment, lock) as run:
        run.begin()
        result = run.train(on_log, should_stop)
        run.write_results(result)

A session owns the run folder and its lock, the checkpoints, the profile and the
phase of the experiment. The lock is held until the session ends. Of many workers
only one has files; the sessions of the others do the same and write nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable

import keras
import tensorflow as tf

from mp_loop.config import errors, json_values, settings
from mp_loop.data import fingerprints
from mp_loop.hardware import environment
from mp_loop.models import predictors
from mp_loop.numerics import probe
from mp_loop.precision import coverage
from mp_loop.run import (
    baselines,
    checkpointing,
    experiment,
    locking,
    loop,
    planning,
    profiling,
    records,
    run_folder,
    same_data,
    scoring,
    timing,
    watching,
    writers,
)
from mp_loop.step import averaging, optimizers, train_state

logger = logging.getLogger(__name__)


class Session:
    """An open run.

    Attributes:
      experiment: what is trained, in its current phase.
      writer: where the run is recorded.
      checkpoints: where its state is saved.
      has_files: whether this process writes the files of the run.
      done: steps taken by earlier processes.
    """

    def __init__(
        self,
        built: experiment.Experiment,
        lock: locking.FolderLock | None = None,
        has_files: bool = True,
    ):
        """Makes the run folder, or reads the one to be resumed.

        Args:
          built: the experiment in its first phase.
          lock: of the folder, if it was taken before.
          has_files: whether this process writes the files of the run.

        Raises:
          UsageError: the folder cannot be used; nothing was changed.
        """
        config = built.config
        plan = _plan(built)
        # Traced before anything is written: a model that cannot be trained is told now.
        # When resumed too: XLA's programs are kept under names that count what has
        # been traced.
        with errors.bad_input(ValueError, flag="model", value=config.model.model):
            graph = _graph(built)
        self.experiment = built
        self.has_files = has_files
        self.done = 0
        self.coverage: coverage.Coverage | None = None
        self.writer: writers.Writer = writers.NullWriter()
        self.checkpoints: writers.CheckpointStore = writers.NullCheckpoints()
        if has_files:
            with errors.bad_input(
                checkpointing.CheckpointError,
                errors.RecordError,
                OSError,
                flag="output_dir",
                value=config.records.output_dir,
            ):
                self._open_files(lock)
        self._plan, self._first_graph = plan, graph
        self._profile = profiling.Profile(
            os.path.join(config.records.output_dir, records.TENSORBOARD_FOLDER),
            plan.profile_range if has_files else None,
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_error: object) -> None:
        self._profile.close()
        with contextlib.suppress(checkpointing.SaveError):  # raised before
            self.checkpoints.wait()
        self.writer.close()

    def begin(self) -> None:
        """Brings all workers to the state and the phase of the checkpoint."""
        if self.has_files:
            self._enter(self.experiment.phase)  # tells the others to stop there
        else:
            before = None
            while self.experiment.phase != before:
                before = self.experiment.phase
                self._enter(0)
        state = self.experiment.step.state
        self.experiment.workers.copy_from_first(list(state.named().values()))
        if self.has_files and not self.done:
            graph = self._first_graph or _graph(self.experiment)
            self.writer.log_setup(self.experiment.config.values(), graph)
        if self.has_files:
            self.coverage = self.experiment.coverage()
            if self.coverage:
                self.writer.write_coverage(self.coverage.values())
        self._first_graph = None
        self.done = int(state.step.numpy())

    def schedule_note(self) -> str:
        """Says what --change_schedule does to the learning rate; "" if nothing."""
        done, total = self.done, self.experiment.total_steps
        if not (self.experiment.config.records.change_schedule and self.has_files):
            return ""
        rate = float(optimizers.learning_rate(self.experiment.step.optimizer))
        lines = records.read_metrics(self.writer.folder)
        before = lines[-1].get("learning_rate") if lines else None
        was = "" if before is None else f"; it was {before:g} at step {done}"
        return (
            f"the learning rate goes on with {rate:g}{was}. The rest of the "
            f"{total} steps follows --schedule="
            f"{self.experiment.config.optimizer.schedule}."
        )

    def train(
        self,
        on_log: Callable[[json_values.Object], None],
        should_stop: Callable[[], int],
        first_steps: loop.FirstSteps = contextlib.nullcontext,
    ) -> loop.Result:
        """Trains every phase that is left.

        Args:
          on_log: called with each line of metrics and of evaluation.
          should_stop: returns the number of the signal that asks to stop, or 0.
          first_steps: entered while the step of a phase is traced and compiled.

        Raises:
          TrainingDiverged, Interrupted, SaveError: see `loop.Loop.train`.
          ReplicasDiffer: workers have come to hold different weights.
        """
        results: list[loop.Result] = []
        for phase in range(self.experiment.phase, len(self.experiment.phase_ends)):
            if phase != self.experiment.phase:
                self.checkpoints.begin(phase, self._enter(phase))
                self.checkpoints.save(results[-1].evaluation)
            one_phase = loop.Loop(
                self.experiment.step,
                self.experiment.batches,
                self.experiment.evaluate,
                self._plan_of(phase),
                self.writer,
                self.checkpoints,
                on_log,
                lambda: self.experiment.workers.largest(should_stop()),
                self._watcher(),
                self._profile,
                # Where a phase begins, a line has just been written.
                since_line=None if results else self.checkpoints.since_line,
                # The chief alone has checkpoints, and so knows the best.
                agree=lambda over: bool(
                    self.experiment.workers.largest(int(over and self.has_files))
                ),
                first_steps=first_steps,
            )
            results.append(one_phase.train())
        self._profile.close()
        self.writer.close_logs()
        seconds = sum(result.train_seconds for result in results)
        return dataclasses.replace(results[-1], train_seconds=seconds)

    def _plan_of(self, phase: int) -> planning.Plan:
        """The plan of one phase; the last one alone may end early."""
        ends = self.experiment.phase_ends
        return dataclasses.replace(
            self._plan,
            total_steps=ends[phase],
            early_stopping=self._plan.early_stopping * (phase == len(ends) - 1),
            patient_from=ends[phase - 1] if phase else 0,
        )

    def write_results(self, result: loop.Result) -> dict[str, json_values.Json]:
        """Writes the model, what predicts with it, what it gets wrong, and the summary.

        Returns:
          The summary.

        Raises:
          OSError: they cannot be written.
        """
        config = self.experiment.config
        summary = {
            **dataclasses.asdict(result),
            **result.evaluation,
            "peak_memory_bytes": environment.peak_memory_bytes(),
            "precision": config.precision.precision,
            "loop": config.precision.loop,
            "dataset": config.data.dataset,
            "model": config.model.model,
            "parameters": self.experiment.model.count_params(),
            "seed": config.training.seed,
        }
        on_gpu = environment.peak_gpu_memory_bytes()
        if on_gpu is not None:
            summary["peak_gpu_memory_bytes"] = on_gpu
        del summary["evaluation"]
        if result.best_step is None:
            del summary["best_step"]
        summary |= baselines.of(self.experiment.source, self.experiment.metric)
        if not result.train_seconds:  # Every step was taken by earlier processes.
            summary |= timing.of_earlier_processes(
                self.writer.folder, config.data.batch_size
            )
        model = self.experiment.step.export()
        with averaging.averaged(self.experiment.step):
            self.writer.write_model(model)
            self._write_predictor(model)
            self._write_test_results(model)
        self.writer.write_summary(summary)  # last: it tells that a run is finished
        return summary

    def _write_predictor(self, model: keras.Model) -> None:
        """Writes what takes raw inputs, of a task with labels."""
        source = self.experiment.source
        if not (source.class_names or source.targets) or not self.has_files:
            return
        try:
            predictor = predictors.make(source, model)
        except errors.ModelError as error:
            predictor = None
            logger.warning("No %s: %s", records.PREDICTOR_FILE, error)
        save_tokenizer = source.tokenize.save if source.tokenize else None
        self.writer.write_predictor(
            predictor, source.class_names, source.columns, save_tokenizer
        )

    def _write_test_results(self, model: keras.Model) -> None:
        """Writes what the final weights get right and wrong, where that can be told."""
        if not self.has_files:
            return
        config = self.experiment.config
        size, show = config.data.batch_size, config.records.show_examples
        try:
            found = scoring.of(self.experiment.source, model, size, show)
        except tf.errors.OpError as error:  # a file of the test data is gone, say
            said = errors.one_line(error.message)
            logger.warning("No %s: %s", records.TEST_RESULTS_FILE, said)
            found = None
        self.writer.write_test_results(found)

    def _open_files(self, lock: locking.FolderLock | None) -> None:
        config = self.experiment.config
        output_dir = config.records.output_dir
        best_by, metric = config.records.best_by, self.experiment.metric
        if best_by == "eval_accuracy":
            best_by = metric.key
        checkpoints = checkpointing.Checkpoints(
            os.path.join(output_dir, records.CHECKPOINTS_FOLDER),
            self.experiment.step.state,
            config.records.keep_checkpoints,
            best_by,
            before_publishing=lambda: self.writer.sync(),
            rescue_folder=lambda: self.writer.rescue("a checkpoint cannot be written"),
            enter=self._enter,
            higher_is_better=best_by == metric.key and metric.higher_is_better,
        )
        flagfile = config.as_begun().to_flagfile()
        data = fingerprints.of(self.experiment.source)
        if config.records.resume:
            same_data.check(config, data)
            self.done = checkpoints.restore(convert=config.records.change_precision)
            _refuse_end_before(config, self.done, self.experiment.total_steps)
            if checkpoints.converted:
                self.experiment.step.reload()
            self.experiment.step.export()
            self.writer = run_folder.RunFolder.reopen(
                output_dir, flagfile, self.done, lock, data
            )
            checkpoints.forget_after(self.done)
        else:
            self.writer = run_folder.RunFolder.create(output_dir, flagfile, data)
        self.checkpoints = checkpoints

    def _enter(self, phase: int) -> train_state.TrainState:
        """Enters the largest phase that any worker names; returns its state.

        All workers must call it together: building a step is collective.
        """
        phase = self.experiment.workers.largest(phase)
        self.experiment = self.experiment.in_phase(phase)
        return self.experiment.step.state

    def _watcher(self) -> watching.Watcher:
        """Watches our own step on one device: a probe can undo all that it does."""
        config = self.experiment.config
        if config.precision.loop != "custom" or config.parallel.strategy != "none":
            return watching.NullWatcher()
        return watching.ProbeWatcher(
            probe.Probe(self.experiment.step),
            self.experiment.batches,
            self.experiment.steps_per_epoch,
            self.writer,
            config.training.explain_skips,
        )


def _plan(built: experiment.Experiment) -> planning.Plan:
    """When to do what in all phases together, as the settings say."""
    config = built.config.training
    profiled = config.profile_range
    if profiled and profiled[0] >= built.total_steps:
        raise errors.UsageError(
            f"--profile_steps ({config.profile_steps}) must begin within the "
            f"{built.total_steps} steps of the run."
        )
    return planning.Plan(
        total_steps=built.total_steps,
        steps_per_epoch=built.steps_per_epoch,
        batch_size=built.config.data.batch_size,
        steps_per_call=config.steps_per_call,
        log_every=config.log_every,
        eval_every=config.eval_every,
        checkpoint_every=config.checkpoint_every,
        diverged_after=config.diverged_after,
        on_stuck=config.on_stuck,
        rollback=config.rollback,
        inspect_every=config.inspect_every,
        profile_range=profiled,
        early_stopping=config.early_stopping,
    )


def _refuse_end_before(config: settings.Config, done: int, total_steps: int) -> None:
    """Refuses a run that ends before its checkpoint."""
    if done > total_steps:
        flag = "steps" if config.training.steps else "epochs"
        raise errors.UsageError(
            f"--{flag} ({config.values()[flag]}) ends at step {total_steps}, before "
            f"the checkpoint, which is of step {done}."
        )


def _graph(built: experiment.Experiment) -> tf.Graph | None:
    """The graph of a step, as the first batch will trace it; None under a strategy."""
    batches = built.batches(0)
    if not isinstance(batches, tf.data.Dataset):
        return None
    return built.step.graph(*batches.element_spec)
