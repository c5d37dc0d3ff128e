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
import contextlib
import dataclasses
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from mp_loop.run import checkpointing, profiling, run_folder

logger = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """Every one of the last steps was skipped; the message names what overflows."""


class Interrupted(Exception):
    """Signal `number` asked the run to stop; a checkpoint of `step` was saved."""

    def __init__(self, step: int, number: int):
        super().__init__(f"interrupted at step {step}")
        self.step = step
        self.number = number


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
      diverged_after: skips in a row after which the training is stuck. Each one
        halves a dynamic scale: there must be enough to find the right one.
      on_stuck: what happens then. "raise" ends the run (`TrainingDiverged`),
        "warn" logs a warning and goes on, "stay" just goes on.
      profile_range: first step to be profiled and the one after the last, or None.
      rollback: how often a training that is stuck goes back to the last checkpoint
        from before, instead of ending.
    """

    total_steps: int
    steps_per_epoch: int
    batch_size: int
    steps_per_call: int = 1
    log_every: int = 20
    eval_every: int = 0
    checkpoint_every: int = 0
    diverged_after: int = 100
    on_stuck: str = "raise"
    rollback: int = 0
    inspect_every: int = 0
    profile_range: tuple[int, int] | None = None

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
        left += [
            edge - position for edge in self.profile_range or () if edge > position
        ]
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


def train(
    step: Any,
    batches: Callable[[int, int], tf.data.Dataset],
    evaluate: Callable[[], dict[str, float]],
    run: run_folder.RunFolder,
    plan: Plan,
    checkpoints: checkpointing.Checkpoints,
    on_log: Callable[[dict[str, Any]], None] = lambda line: None,
    should_stop: Callable[[], int] = lambda: 0,
    clock: Callable[[], float] = time.perf_counter,
    witness: Any = None,
    profile: profiling.Profile | None = None,
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
      should_stop: asked between calls, when all that was due has been done; the
        number of the signal that asks to stop, or 0.
      clock: seconds.
      witness: a `mp_loop.run.watcher.Witness`, or None: nobody looks.
      profile: of the steps that the plan names, to be closed by the caller.

    Raises:
      TrainingDiverged: every step is skipped, `on_stuck` is "raise", and no
        rollback is left.
      Interrupted: `should_stop` said so; a checkpoint was saved.
      SaveError: the run folder cannot be written.
    """
    position = int(step.state.step.numpy())
    iterator, evaluation = None, {}
    watch, began = _Watch(step, plan), ""
    timer = _Timer(plan.batch_size, clock)
    if plan.rollback and position == 0:
        checkpoints.save()  # what the first rollback may need
    while position < plan.total_steps:
        epoch, batch = divmod(position, plan.steps_per_epoch)
        if iterator is None or batch == 0:
            iterator = iter(batches(epoch, batch))
        count = plan.steps_until_due(position)
        if witness and plan.inspect_every and position % plan.inspect_every == 0:
            witness.look(position)
        log_due = plan.is_due(position + count, plan.log_every)
        eval_due = plan.is_due(position + count, plan.eval_every)
        save_due = plan.is_due(position + count, plan.checkpoint_every)
        if profile:
            profile.before(position)
        with timer.window(count):
            metrics = step.run(iterator, count)
            if log_due or eval_due or save_due:
                values = _last_values(metrics)  # waits for the device
        if witness:
            witness.remember(position, metrics)
        position += count
        if profile:
            profile.after(position, metrics)
        if log_due:
            line = {
                **_counters(step.state),
                **values,
                "examples_per_second": timer.close_window(),
                "overflowed": _overflowed(step),
                **(witness.report(position) if witness else {}),
            }
            began = line.get("overflow", {}).get("text", began)
            run.log(line)
            on_log(line)
        if log_due or eval_due or save_due:
            try:
                watch(values, began)
            except TrainingDiverged as error:
                position = _roll_back(step, checkpoints, run, plan, error)
                iterator, began = None, ""
                if witness:
                    witness.forget()
                continue
        if eval_due:
            evaluation = evaluate()
            run.log_evaluation(position, evaluation)
            on_log({"step": position, **evaluation})
        if save_due or (eval_due and checkpoints.is_best(evaluation)):
            checkpoints.save(evaluation if eval_due else {})
        if run.failure:
            _save_elsewhere(position, checkpoints, run)
        checkpoints.check()
        if position < plan.total_steps and (number := should_stop()):
            checkpoints.save(evaluation if eval_due else {})
            checkpoints.wait()
            raise Interrupted(position, number)
    checkpoints.wait()
    if not evaluation:
        evaluation = evaluate()
    counters = _counters(step.state)
    return Result(
        evaluation=evaluation,
        final_loss_scale=float(step.loss_scale),
        train_seconds=timer.seconds,
        examples_per_second=plan.batch_size / timer.steady,
        milliseconds_per_step=timer.steady * 1e3,
        steps=counters["step"],
        applied_steps=counters["applied_steps"],
        skipped_steps=counters["skipped_steps"],
    )


class _Timer:
    """Seconds of training; a window is what lies between two lines of metrics."""

    def __init__(self, batch_size: int, clock: Callable[[], float]):
        self.seconds = 0.0
        self._batch_size, self._clock = batch_size, clock
        self._speeds: list[float] = []  # seconds a step, one for each window
        self._window = [0.0, 0]

    @contextlib.contextmanager
    def window(self, steps: int) -> Iterator[None]:
        """Times a call of so many steps."""
        started = self._clock()
        yield
        self._window[0] += self._clock() - started
        self._window[1] += steps

    def close_window(self) -> float:
        """Returns the examples a second since the last line."""
        seconds, steps = self._window
        self._window = [0.0, 0]
        self.seconds += seconds
        self._speeds.append(seconds / steps)
        return self._batch_size / self._speeds[-1]

    @property
    def steady(self) -> float:
        """Seconds a step; the first window holds tracing and compilation."""
        return statistics.median(self._speeds[1:] or self._speeds or [float("nan")])


def _roll_back(
    step: Any,
    checkpoints: checkpointing.Checkpoints,
    run: run_folder.RunFolder,
    plan: Plan,
    error: TrainingDiverged,
) -> int:
    """Goes back to the last good checkpoint; returns its step.

    The loss scale backs off, and the learning rate, which reads `rollbacks`, drops.
    A process that dies in here leaves a run that diverges again and comes here
    again: the checkpoint is replaced last.
    """
    checkpoints.wait()
    state = step.state
    done = int(state.rollbacks.numpy())
    if done >= plan.rollback:
        raise error
    entry = checkpoints.restore_healthy()
    if entry is None:
        raise error
    state.rollbacks.assign(done + 1)
    step.back_off()
    checkpoints.forget_after(entry.step)
    run.rewind(entry.step)
    checkpoints.save(entry.metrics, retried=True)
    checkpoints.wait()
    logger.warning(
        "Rollback %d of %d to step %d, with a loss scale of %g: %s",
        done + 1,
        plan.rollback,
        entry.step,
        float(step.loss_scale),
        error,
    )
    return entry.step


def _save_elsewhere(
    position: int, checkpoints: checkpointing.Checkpoints, run: run_folder.RunFolder
) -> None:
    """Saves the state beside the lines that the run folder could not take."""
    checkpoints.wait()  # raises if that is where it began
    if run.rescued:
        checkpoints.move(run.checkpoints)
        checkpoints.save()
        checkpoints.wait()
    raise checkpointing.SaveError(
        f"the lines of step {position} cannot be written: {run.failure}",
        str(run.folder) if run.rescued else None,
    )


def _last_values(metrics: dict[str, tf.Tensor]) -> dict[str, float | None]:
    """Reads the metrics of a call's last step from the device."""
    names = ("loss", "learning_rate", "loss_scale", "grad_norm")
    return {
        name: float(metrics[name][-1]) if name in metrics else None for name in names
    }


def _counters(state: Any) -> dict[str, int]:
    names = (
        "step", "applied_steps", "skipped_steps", "forward_overflows", "rollbacks",
    )  # fmt: skip
    return {name: int(getattr(state, name).numpy()) for name in names}


def _overflowed(step: Any) -> dict[str, int]:
    """Returns, by path, in how many steps since the last line a gradient overflowed.

    Variables whose gradients did not are left out.
    """
    state = step.state
    total = state.overflows.numpy()
    new = total - state.logged_overflows.numpy()
    state.logged_overflows.assign(total)
    return dict(_by_path(step, new))


def _by_path(step: Any, counts: Sequence[int]) -> collections.Counter[str]:
    """Adds up counts by the paths of the masters, which two may share."""
    total: collections.Counter[str] = collections.Counter()
    for variable, count in zip(step.model.trainable_variables, counts, strict=True):
        total[variable.path] += int(count)
    return +total


class _Watch:
    """Tells when a training is stuck, and does what the plan says then."""

    def __init__(self, step: Any, plan: Plan):
        self._step, self._plan = step, plan
        self._floor = step.min_scale
        self._start = step.state.overflows.numpy()
        self._warned = False

    def __call__(self, values: dict[str, Any], began: str = "") -> None:
        """Looks at the state, and at the metrics of its last step.

        Args:
          values: the metrics.
          began: where the overflow began, if someone looked into it.

        Raises:
          TrainingDiverged: the training is stuck, and the plan says "raise".
        """
        state = self._step.state
        skips = int(state.stuck_steps.numpy())
        if skips < self._plan.diverged_after:
            self._warned = False
            if not skips:
                self._start = state.overflows.numpy()
            return
        scale = values["loss_scale"]
        said = (
            f"every one of the last {skips} steps (now step {state.step.numpy()}) was "
            f"skipped; the loss is {values['loss']:g}, the loss scale {scale:g}"
            f"{' (its floor)' if scale <= self._floor else ''}. "
            f"{_blame(self._step, self._start, began)} Look for inf or nan in the "
            "data, lower --learning_rate, or try --precision=bfloat16; "
            "python -m mp_loop.inspect --advise measures what helps."
        )
        if self._plan.on_stuck == "raise":
            raise TrainingDiverged(said)
        if self._plan.on_stuck == "warn" and not self._warned:
            logger.warning("The training is stuck: %s", said)
            self._warned = True


def _blame(step: Any, start: Any, began: str, shown: int = 5) -> str:
    """Names the variables that overflowed most since the counts were `start`."""
    overflowed = _by_path(step, step.state.overflows.numpy() - start)
    began = f" The last one began so: {began}." if began else ""
    if not overflowed:
        return f"No gradient was seen to be the cause.{began}"
    names = ", ".join(path for path, _ in overflowed.most_common(shown))
    more = len(overflowed) - shown
    return (
        f"Not finite were the gradients of {names}"
        f"{f' and {more} more' if more > 0 else ''}.{began}"
    )
