"""The outer loop: epochs, logging, evaluation, checkpoints, resume, stopping.

    result = Loop(step, batches, evaluate, plan, run, checkpoints).train()

The inner loop (`step.run`) takes several steps in one call and never reads the
device. Here, at the boundaries the plan names, values are read, written down
and decided upon, always in this order: log, evaluate, checkpoint. A
checkpoint therefore covers every line written at its step, and a resumed run
repeats none and misses none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping

import tensorflow as tf

from mp_loop.config import json_values
from mp_loop.distributed import nests
from mp_loop.hardware import devices
from mp_loop.run import (
    checkpointing,
    counters,
    divergence,
    input_wait,
    mean_metrics,
    planning,
    profiling,
    timing,
    watching,
    writers,
)
from mp_loop.step import protocol

_READ = ("loss", "learning_rate", "loss_scale", "grad_norm")

FirstSteps = Callable[[], contextlib.AbstractContextManager[None]]

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """Signal `number` asked the run to stop; a checkpoint of `step` was saved."""

    def __init__(self, step: int, number: int):
        super().__init__(f"interrupted at step {step}")
        self.step = step
        self.number = number


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run reports; times cover training in this process only.

    Where the training ended early, the weights and the evaluation are those of
    `best_step`.
    """

    evaluation: dict[str, float]
    steps: int
    applied_steps: int
    skipped_steps: int
    final_loss_scale: float
    train_seconds: float
    examples_per_second: float
    milliseconds_per_step: float
    best_step: int | None = None


@dataclasses.dataclass
class Loop:
    """One training, from its state's step to the end of its plan.

    Attributes:
      step: takes the steps.
      batches: makes the data of (epoch, first batch).
      evaluate: returns `eval_loss` and `eval_accuracy` of the current weights.
      plan: when to do what.
      run: where lines are written.
      checkpoints: where the state is saved.
      on_log: called with each line of metrics and of evaluation.
      first_steps: entered while the first call traces and compiles the step.
      should_stop: asked between calls, when all that was due has been done; returns
        the number of the signal that asks to stop, or 0.
      watcher: looks into steps.
      profile: of the steps that the plan names; the caller closes it.
      clock: returns the time in seconds.
      since_line: what earlier processes added to the means of the next line.
      agree: makes one decision of those of all workers.
    """

    step: protocol.Step
    batches: Callable[[int, int], tf.data.Dataset]
    evaluate: Callable[[], dict[str, float]]
    plan: planning.Plan
    run: writers.Writer
    checkpoints: writers.CheckpointStore
    on_log: Callable[[json_values.Object], None] = lambda line: None
    should_stop: Callable[[], int] = lambda: 0
    watcher: watching.Watcher = watching.NullWatcher()
    profile: profiling.Profile = profiling.Profile("", None)
    clock: Callable[[], float] = time.perf_counter
    since_line: Mapping[str, float] | None = None
    agree: Callable[[bool], bool] = bool
    first_steps: FirstSteps = contextlib.nullcontext

    def __post_init__(self):
        self._position = int(self.step.state.step.numpy())
        self._iterator: nests.Batches | None = None
        self._means = mean_metrics.MeanMetrics(self.since_line)
        self._values: dict[str, float | None] = {}
        self._evaluation: dict[str, float] = {}
        self._origin = ""  # of the last overflow
        self._wait = input_wait.InputWait(devices.has_gpu())
        self._timer = timing.StepTimer(self.plan.batch_size, self.clock)
        self._divergence = divergence.DivergenceCheck(self.step, self.plan)
        self._best_step = self._saved_best()

    def train(self) -> Result:
        """Trains to the end.

        Raises:
          TrainingDiverged: every step is skipped, `on_stuck` is "raise", and no
            rollback is left.
          Interrupted: `should_stop` returned a signal; a checkpoint was saved.
          SaveError: the run folder cannot be written.
        """
        if self.plan.rollback and self._position == 0:
            self.checkpoints.save()  # what the first rollback may need
        over = self._is_over()
        while self._position < self.plan.total_steps and not over:
            due = self._take_steps()
            if due.log:
                self._log()
            if due.anything:
                try:
                    self._divergence.check(self._values, self._origin)
                except divergence.TrainingDiverged as error:
                    self._roll_back(error)
                    continue
            evaluation = self._evaluate() if due.evaluate else {}
            is_best = due.evaluate and self.checkpoints.is_best(evaluation)
            if is_best:
                self._best_step = self._position
            over = due.evaluate and self._is_over()
            if due.save or is_best or over:
                self._save(evaluation)
            if self.run.failure:
                self._save_elsewhere()
            self.checkpoints.check()
            if self._position < self.plan.total_steps:
                self._stop_if_asked(evaluation)
        self.checkpoints.wait()
        return self._result()

    def _saved_best(self) -> int:
        """The step of the best checkpoint, where it is asked for."""
        best = self.checkpoints.best() if self.plan.early_stopping else None
        return 0 if best is None else best.step

    def _is_over(self) -> bool:
        """Whether the best evaluation is so long ago that the training ends early."""
        over = self.plan.is_over(self._position, self._best_step)
        return bool(self.plan.early_stopping) and self.agree(over)

    def _take_steps(self) -> planning.Due:
        """Takes the steps of one call; returns what is due after them."""
        epoch, batch = divmod(self._position, self.plan.steps_per_epoch)
        if self._iterator is None or batch == 0:
            self._iterator = iter(self.batches(epoch, batch))
        count = self.plan.steps_until_due(self._position)
        due = self.plan.due_at(self._position + count)
        if self.plan.inspects(self._position):
            self.watcher.look(self._position)
        self.profile.before(self._position)
        first_steps, self.first_steps = self.first_steps, contextlib.nullcontext
        with first_steps(), self._timer.window(count):
            metrics = self.step.run(self._iterator, count)
            if due.anything:
                self._values = _last_values(metrics)  # waits for the device
        self._means.add(metrics)
        self._wait.add(metrics)
        self.watcher.remember(self._position, metrics)
        self._position += count
        self.profile.after(self._position, metrics)
        return due

    def _log(self) -> None:
        line = {
            **counters.read(self.step.state),
            **self._values,
            **self._means.take(),
            "examples_per_second": self._timer.close_window(),
            "input_wait": self._wait.take(),
            "overflowed": counters.new_overflows(self.step),
            "skip_reasons": counters.skip_reasons(self.step.state),
            **self.watcher.report(self._position),
        }
        if "overflow" in line:
            self._origin = line["overflow"]["text"]
        self.run.log(line)
        self.on_log(line)

    def _evaluate(self) -> dict[str, float]:
        self._evaluation = self.evaluate()
        self.run.log_evaluation(self._position, self._evaluation)
        self.on_log({"step": self._position, **self._evaluation})
        return self._evaluation

    def _save(self, evaluation: Mapping[str, float]) -> None:
        self.checkpoints.save(evaluation, since_line=self._means.state())

    def _stop_if_asked(self, evaluation: Mapping[str, float]) -> None:
        number = self.should_stop()
        if number:
            self._save(evaluation)
            self.checkpoints.wait()
            raise Interrupted(self._position, number)

    def _roll_back(self, error: divergence.TrainingDiverged) -> None:
        """Goes back to the last good checkpoint, or raises the error.

        The loss scale backs off, and the learning rate, which reads `rollbacks`,
        drops. A process that dies in here leaves a run that diverges again and comes
        here again: the checkpoint is replaced last.
        """
        self.checkpoints.wait()
        rollbacks = self.step.state.rollbacks
        done = int(rollbacks.numpy())
        if done >= self.plan.rollback:
            raise error
        entry = self.checkpoints.restore_healthy()
        if entry is None:
            raise error
        rollbacks.assign(done + 1)
        self.step.back_off()
        self.checkpoints.forget_after(entry.step)
        self.run.rewind(entry.step)
        self.checkpoints.save(entry.metrics, True, entry.since_line)
        self._means = mean_metrics.MeanMetrics(entry.since_line)
        self.checkpoints.wait()
        self.watcher.forget()
        self._position, self._iterator, self._origin = entry.step, None, ""
        self._best_step = self._saved_best()
        logger.warning(
            "Rollback %d of %d to step %d, with a loss scale of %g: %s",
            done + 1,
            self.plan.rollback,
            entry.step,
            float(self.step.loss_scale),
            error,
        )

    def _save_elsewhere(self) -> None:
        """Saves the state beside the lines that the run folder could not take."""
        self.checkpoints.wait()  # raises if that is where it began
        if self.run.rescued:
            self.checkpoints.move(self.run.checkpoints)
            self.checkpoints.save()
            self.checkpoints.wait()
        raise checkpointing.SaveError(
            f"the lines of step {self._position} cannot be written: {self.run.failure}",
            str(self.run.folder) if self.run.rescued else None,
        )

    def _result(self) -> Result:
        counts = counters.read(self.step.state)
        scale = float(self.step.loss_scale)
        best = self._return_to_best()
        return Result(
            evaluation=dict(best.metrics)
            if best
            else self._evaluation or self.evaluate(),
            steps=counts["step"],
            applied_steps=counts["applied_steps"],
            skipped_steps=counts["skipped_steps"],
            final_loss_scale=scale,
            train_seconds=self._timer.seconds,
            examples_per_second=self._timer.examples_per_second,
            milliseconds_per_step=self._timer.seconds_per_step * 1e3,
            best_step=best and best.step,
        )

    def _return_to_best(self) -> checkpointing.Entry | None:
        """Restores the best checkpoint where the training ended early."""
        if self._position == self.plan.total_steps or not self.plan.early_stopping:
            return None
        best = self.checkpoints.restore_best()
        if best is not None:
            logger.warning(
                "Stopped early at step %d of %d: no evaluation since step %d was "
                "better.",
                self._position,
                self.plan.total_steps,
                best.step,
            )
        return best


def _last_values(metrics: Mapping[str, tf.Tensor]) -> dict[str, float | None]:
    """Reads the metrics of a call's last step from the device."""
    return {
        name: float(metrics[name][-1]) if name in metrics else None for name in _READ
    }
