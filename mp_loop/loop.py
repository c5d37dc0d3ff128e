"""The outer loop: epochs, logging, evaluation, checkpoints, resume, stopping.

    result = train(step, batches, evaluate, run, plan, on_log=show)

The inner loop (`step.run`) takes several steps in one call and never reads the
device. Here, at the boundaries the plan names, values are read, written down
and decided upon, always in this order: log, evaluate, checkpoint. A
checkpoint therefore covers every line written at its step, and a resumed run
repeats none and misses none.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import statistics
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from mp_loop import record

logger = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """Every one of the last steps was skipped; the message names what overflows."""


class CheckpointError(ValueError):
    """A checkpoint does not exist, cannot be read, or holds another training."""


class Interrupted(Exception):
    """The run was asked to stop; a checkpoint of `step` was saved."""

    def __init__(self, step: int):
        super().__init__(f"interrupted at step {step}")
        self.step = step


@dataclasses.dataclass(frozen=True)
class Plan:
    """When to do what, counted in steps.

    Attributes:
      total_steps: where the run ends.
      steps_per_epoch: batches in one pass over the data.
      batch_size: examples of one step.
      steps_per_call: the most steps taken without a look at the device.
      log_every: steps between lines of metrics.
      eval_every: steps between evaluations; 0: every epoch.
      checkpoint_every: steps between checkpoints; 0: every epoch.
      inspect_every: steps between looks at the numbers; 0: none.
      keep_checkpoints: how many are kept.
      diverged_after: skips in a row after which the training is stuck. Each one
        halves a dynamic scale: there must be enough to find the right one.
      on_stuck: what happens then. "raise" ends the run (`TrainingDiverged`),
        "warn" logs a warning and goes on, "stay" just goes on.
    """

    total_steps: int
    steps_per_epoch: int
    batch_size: int
    steps_per_call: int = 1
    log_every: int = 20
    eval_every: int = 0
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    diverged_after: int = 100
    on_stuck: str = "raise"
    inspect_every: int = 0

    def is_due(self, position: int, every: int) -> bool:
        """Tells whether something that happens `every` steps happens now."""
        every = every or self.steps_per_epoch
        return position % every == 0 or position == self.total_steps

    def steps_until_due(self, position: int) -> int:
        """Returns how many steps one call may take from here."""
        periods = (
            self.log_every,
            self.eval_every or self.steps_per_epoch,
            self.checkpoint_every or self.steps_per_epoch,
            self.steps_per_epoch,
            self.inspect_every or self.steps_per_epoch,
        )
        left = [every - position % every for every in periods]
        return min(*left, self.steps_per_call, self.total_steps - position)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run reports; times cover training in this process only."""

    evaluation: dict[str, float]
    steps: int
    applied_steps: int
    skipped_steps: int
    final_loss_scale: float
    train_seconds: float
    examples_per_second: float
    milliseconds_per_step: float


class Checkpoints:
    """The checkpoints of one training, in one folder."""

    def __init__(self, folder: str, state: tf.Module, keep: int):
        """Looks at the folder; nothing is read or written yet."""
        self._state = state
        self._manager = tf.train.CheckpointManager(
            tf.train.Checkpoint(state=state), folder, max_to_keep=keep
        )

    def save(self) -> None:
        """Writes the state under its own step number."""
        self._manager.save(checkpoint_number=int(self._state.step))

    def restore(self) -> int:
        """Restores the newest checkpoint, bit for bit; returns its step.

        Raises:
          CheckpointError: there is none, or it is not of this training.
        """
        newest = self._manager.latest_checkpoint
        if newest is None:
            raise CheckpointError(
                f"--output_dir ({self._manager.directory}) holds no checkpoint to "
                "resume from."
            )
        try:
            status = self._manager.checkpoint.restore(newest)
            status.assert_consumed()
        except (AssertionError, LookupError, ValueError, tf.errors.OpError) as error:
            reason = (str(error).strip().splitlines() or ["unreadable"])[0]
            raise CheckpointError(
                f"--resume: the checkpoint {newest} does not fit this training or "
                f"is damaged: {reason}"
            ) from None
        return int(self._state.step)


def train(
    step: Any,
    batches: Callable[[int, int], tf.data.Dataset],
    evaluate: Callable[[], dict[str, float]],
    run: record.Run,
    plan: Plan,
    checkpoints: Checkpoints,
    on_log: Callable[[dict[str, Any]], None] = lambda line: None,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
    witness: Any = None,
) -> Result:
    """Trains from the state's step to the end of the plan.

    Args:
      step: a `TrainStep` or `KerasStep`.
      batches: makes the data of (epoch, first batch).
      evaluate: returns `eval_loss` and `eval_accuracy` of the current weights.
      run: where lines are written.
      plan: when to do what.
      checkpoints: where the state is saved.
      on_log: called with each line of metrics and of evaluation.
      should_stop: asked between calls, when all that was due has been done.
      clock: seconds.
      witness: a `mp_loop.witness.Witness`, or None: nobody looks.

    Raises:
      TrainingDiverged: every step is skipped, and `on_stuck` is "raise".
      Interrupted: `should_stop` said so; a checkpoint was saved.
    """
    position = int(step.state.step)
    iterator, evaluation = None, {}
    speeds: list[float] = []  # seconds a step, one for each logged window
    window_steps, window_seconds, train_seconds = 0, 0.0, 0.0
    watch = _Watch(step, plan)
    while position < plan.total_steps:
        epoch, batch = divmod(position, plan.steps_per_epoch)
        if iterator is None or batch == 0:
            iterator = iter(batches(epoch, batch))
        count = plan.steps_until_due(position)
        if witness and plan.inspect_every and position % plan.inspect_every == 0:
            witness.look(position)
        started = clock()
        metrics = step.run(iterator, count)
        if witness:
            witness.remember(position, metrics)
        due = plan.is_due(position + count, plan.log_every)
        if due:
            values = _last_values(metrics)  # waits for the device
        window_seconds += clock() - started
        window_steps += count
        position += count
        if due:
            train_seconds += window_seconds
            speeds.append(window_seconds / window_steps)
            line = {
                **_counters(step.state),
                **values,
                "examples_per_second": plan.batch_size / speeds[-1],
                "overflowed": _overflowed(step),
                **(witness.report(position) if witness else {}),
            }
            window_steps, window_seconds = 0, 0.0
            run.log(line)
            on_log(line)
            watch(line)
        if plan.is_due(position, plan.eval_every):
            evaluation = evaluate()
            run.log_evaluation(position, evaluation)
            on_log({"step": position, **evaluation})
        if plan.is_due(position, plan.checkpoint_every):
            checkpoints.save()
        if position < plan.total_steps and should_stop():
            checkpoints.save()
            raise Interrupted(position)
    if not evaluation:
        evaluation = evaluate()
    counters = _counters(step.state)
    # The first window holds tracing and compilation.
    steady = statistics.median(speeds[1:] or speeds or [float("nan")])
    return Result(
        evaluation=evaluation,
        final_loss_scale=float(step.loss_scale),
        train_seconds=train_seconds,
        examples_per_second=plan.batch_size / steady,
        milliseconds_per_step=steady * 1e3,
        steps=counters["step"],
        applied_steps=counters["applied_steps"],
        skipped_steps=counters["skipped_steps"],
    )


def _last_values(metrics: dict[str, tf.Tensor]) -> dict[str, float | None]:
    """Reads the metrics of a call's last step from the device."""
    names = ("loss", "learning_rate", "loss_scale", "grad_norm")
    return {
        name: float(metrics[name][-1]) if name in metrics else None for name in names
    }


def _counters(state: Any) -> dict[str, int]:
    names = ("step", "applied_steps", "skipped_steps", "forward_overflows")
    return {name: int(getattr(state, name)) for name in names}


def _overflowed(step: Any) -> dict[str, int]:
    """Returns, by path, in how many steps since the last call a gradient overflowed.

    Variables that did not are left out.
    """
    state = step.state
    total = state.overflows.numpy()
    new = total - state.logged_overflows.numpy()
    state.logged_overflows.assign(total)
    counts: collections.Counter[str] = collections.Counter()
    for variable, count in zip(step.model.trainable_variables, new, strict=True):
        counts[variable.path] += int(count)  # two variables may share a path
    return dict(+counts)


class _Watch:
    """Tells when a training is stuck, and does what the plan says then."""

    def __init__(self, step: Any, plan: Plan):
        self._state, self._plan = step.state, plan
        self._floor = getattr(getattr(step, "rule", None), "min_scale", 0.0)
        self._warned = False

    def __call__(self, line: dict[str, Any]) -> None:
        """Looks at a line of metrics.

        Raises:
          TrainingDiverged: the training is stuck, and the plan says "raise".
        """
        skips = int(self._state.stuck_steps)
        if skips < self._plan.diverged_after:
            self._warned = False
            return
        said = (
            f"every one of the last {skips} steps (now step {line['step']}) was "
            f"skipped; the loss is {line['loss']:g}, the loss scale "
            f"{line['loss_scale']:g}"
            f"{' (its floor)' if line['loss_scale'] <= self._floor else ''}. "
            f"{_blame(line)} Look for inf or nan in the data, lower "
            "--learning_rate, or try --precision=bfloat16."
        )
        if self._plan.on_stuck == "raise":
            raise TrainingDiverged(said)
        if self._plan.on_stuck == "warn" and not self._warned:
            logger.warning("The training is stuck: %s", said)
            self._warned = True


def _blame(line: dict[str, Any], shown: int = 5) -> str:
    """Names the variables that overflowed most since the line before."""
    overflowed = collections.Counter(line["overflowed"])
    began = line.get("overflow", {}).get("text")
    began = f" It began so: {began}." if began else ""
    if not overflowed:
        return f"No gradient was seen to be the cause.{began}"
    names = ", ".join(path for path, _ in overflowed.most_common(shown))
    more = len(overflowed) - shown
    return (
        f"Not finite were the gradients of {names}"
        f"{f' and {more} more' if more > 0 else ''}.{began}"
    )
