"""The checkpoints of a training: saved while it runs, verified before use.

    checkpoints = Checkpoints(folder, step.state, keep=2)
    done = checkpoints.restore()               # the newest that is not damaged
    checkpoints.save({"eval_accuracy": 0.9})   # returns at once
    checkpoints.wait()                         # raises what the writing raised

Saving copies the state to the host and returns; a thread writes the copy. A process
that dies at any moment leaves a whole checkpoint or none (`checkpoint_files`). What
the disk breaks later is found by checksums (`manifests`), and the checkpoint before
is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import threading
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from mp_loop.run import checkpoint_files, checkpoint_match, file_errors, manifests
from mp_loop.step import train_state

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint does not exist, is damaged, or is of another training."""


class SaveError(RuntimeError):
    """A checkpoint could not be written.

    Attributes:
      rescued: the run folder that it was written to instead, or None.
    """

    def __init__(self, message: str, rescued: str | None):
        super().__init__(message)
        self.rescued = rescued


@dataclasses.dataclass(frozen=True)
class Entry:
    """One checkpoint on disk; see `manifests.Manifest`."""

    path: pathlib.Path
    step: int
    metrics: Mapping[str, float]
    phase: int
    healthy: bool
    retried: bool
    since_line: Mapping[str, float]


class Checkpoints:
    """The checkpoints of one training, in one folder.

    Attributes:
      converted: what was restored was of another precision.
      since_line: of what was restored; see `manifests.Manifest`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        state: train_state.TrainState,
        keep: int,
        best_by: str = "eval_accuracy",
        before_publishing: Callable[[], None] = lambda: None,
        rescue_folder: Callable[[], str | None] = lambda: None,
        enter: Callable[[int], train_state.TrainState] | None = None,
        higher_is_better: bool | None = None,
    ):
        """Nothing is read or written yet.

        Args:
          folder: made when needed, but not the folder that holds it.
          state: what is saved and restored.
          keep: how many of the newest are kept; the best is kept besides.
          best_by: the name of a metric, or "" for none.
          before_publishing: called in the writing thread when the files are on the
            disk, to write what must be there before the checkpoint is.
          rescue_folder: returns the run folder to write to when `folder` cannot be
            written, or None.
          enter: enters a phase of the training, from 0, and returns its state; None:
            there is one phase.
          higher_is_better: of the metric; None: of every one but "eval_loss".
        """
        self._folder = pathlib.Path(folder)
        self._state = state
        self._phase = 0
        self._enter = enter
        self._keep = keep
        self._best_by = best_by
        if higher_is_better is None:
            higher_is_better = best_by != "eval_loss"
        self._sign = -1 if higher_is_better else 1
        self._before_publishing = before_publishing
        self._rescue_folder = rescue_folder
        self.converted = False
        self.since_line: Mapping[str, float] = {}
        self._best: float | None = None  # rank; None: not known yet
        self._damaged: set[pathlib.Path] = set()
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self,
        metrics: Mapping[str, float] | None = None,
        retried: bool = False,
        since_line: Mapping[str, float] | None = None,
    ) -> None:
        """Copies the state and starts to write it under its step number.

        Waits for the write before this one, so that at most one copy is held.

        Args:
          metrics: of an evaluation of this very state.
          retried: marks the checkpoint as the start of a rollback.
          since_line: of the mean metrics; see `mean_metrics.MeanMetrics.state`.

        Raises:
          SaveError: the write before this one failed.
        """
        self.wait()
        metrics = dict(metrics or {})
        if self.is_best(metrics):
            self._best = self._rank(metrics)
        variables = self._state.named()
        # On the host, in the variables' own dtypes. Where nothing has to be moved the
        # copy is made by the next update, which must not write into what others hold.
        with tf.device("CPU:0"):
            tensors = {
                name: tf.identity(variable.read_value())
                for name, variable in variables.items()
            }
        manifest = manifests.Manifest(
            step=int(tensors["step"]),
            metrics=metrics,
            phase=self._phase,
            healthy=int(tensors["stuck_steps"]) == 0,
            retried=retried,
            since_line=dict(since_line or {}),
            tensors={
                name: {
                    "variable": variables[name].name,
                    "dtype": tensor.dtype.name,
                    "shape": tensor.shape.as_list(),
                }
                for name, tensor in tensors.items()
            },
        )
        # Not a daemon: a process that ends normally writes to the end.
        self._writer = threading.Thread(target=self._write, args=(manifest, tensors))
        self._writer.start()

    def begin(self, phase: int, state: train_state.TrainState) -> None:
        """From now on another phase of the training, with its own state, is saved."""
        self._phase, self._state = phase, state

    def move(self, folder: str | os.PathLike[str]) -> None:
        """From now on checkpoints are written to another folder."""
        self._folder = pathlib.Path(folder)

    def wait(self) -> None:
        """Waits until nothing is being written.

        Raises:
          SaveError: the last write failed.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        self.check()

    def check(self) -> None:
        """Raises SaveError if a write has failed; does not wait."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether an evaluation is better than those of all checkpoints so far."""
        if self._best is None:
            best = self.best()
            self._best = math.inf if best is None else self._rank(best.metrics)
        return self._rank(metrics) < self._best

    def restore(self, convert: bool = False) -> int:
        """Restores the newest checkpoint that is not damaged, bit for bit.

        Nothing is assigned unless everything can be.

        Args:
          convert: takes from a checkpoint of another precision what does not depend
            on it (`checkpoint_match`). Call the step's `reload` afterwards.

        Returns:
          The step of the checkpoint; 0, and nothing is restored, if there is none:
          the run ended before it wrote one.

        Raises:
          CheckpointError: all are damaged, or the newest is of another training.
        """
        checkpoint_files.undo_replacements(self._folder)
        damaged: list[str] = []
        for path in reversed(self._paths()):
            try:
                values = self._read(path, convert)
            except manifests.CorruptError as error:
                damaged.append(f"{path} ({error})")
                self._damaged.add(path)
                continue
            for text in damaged:
                logger.warning(
                    "The checkpoint %s is damaged; %s is used instead.", text, path
                )
            for variable, value in values:
                variable.assign(value)
            filled = {id(variable) for variable, _ in values}
            self.converted = any(
                id(variable) not in filled and name not in train_state.LATER
                for name, variable in self._state.named().items()
            )
            self.since_line = _read_manifest(path).since_line
            return int(self._state.step.numpy())
        if damaged:
            raise CheckpointError(
                f"--resume: every checkpoint in {self._folder} is damaged: "
                f"{'; '.join(damaged)}."
            )
        logger.warning(
            "%s holds no checkpoint yet: the training starts from the beginning.",
            self._folder,
        )
        return 0

    def restore_healthy(self) -> Entry | None:
        """Restores the newest checkpoint of this phase not made after a skipped step.

        One that a rollback started from already is used only if there is no other.

        Returns:
          Its entry; None if there is none.
        """
        self.wait()
        entries = [
            entry
            for entry in reversed(self.entries())
            if entry.healthy and entry.phase == self._phase
        ]
        return self._restored(sorted(entries, key=lambda entry: entry.retried))

    def restore_best(self) -> Entry | None:
        """Restores the checkpoint of the best evaluation.

        Returns:
          Its entry; None if there is none, or if it is damaged.
        """
        self.wait()
        return self._restored(list(filter(None, [self.best()])))

    def _restored(self, entries: Sequence[Entry]) -> Entry | None:
        """Restores the first of some checkpoints that is not damaged."""
        for entry in entries:
            with contextlib.suppress(manifests.CorruptError):
                for variable, value in self._read(entry.path, convert=False):
                    variable.assign(value)
                return entry
        return None

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints after `step`: the training continues from there.

        Those that `restore` found damaged are kept under another name.
        """
        for path in self._paths():
            if checkpoint_files.step_of(path) <= step:
                continue
            if path in self._damaged:
                checkpoint_files.put_aside(path, ".damaged")
            else:
                checkpoint_files.remove(path)
        checkpoint_files.remove_leftovers(self._folder)
        self._best = None

    def entries(self) -> list[Entry]:
        """The checkpoints whose manifest can be read, by step."""
        names = [field.name for field in dataclasses.fields(Entry)][1:]
        entries = []
        for path in self._paths():
            with contextlib.suppress(manifests.CorruptError):
                manifest = _read_manifest(path)
                values = {name: getattr(manifest, name) for name in names}
                entries.append(Entry(path, **values))
        return entries

    def best(self) -> Entry | None:
        """The entry of the best evaluation; of equals, the first."""
        rated = [e for e in self.entries() if self._rank(e.metrics) < math.inf]
        return min(rated, key=lambda e: self._rank(e.metrics), default=None)

    def _rank(self, metrics: Mapping[str, float]) -> float:
        """Lower is better; inf where there is nothing to go by."""
        value = metrics.get(self._best_by, math.nan)
        return math.inf if math.isnan(value) else self._sign * value

    def _paths(self) -> list[pathlib.Path]:
        """The checkpoints by step."""
        try:
            return checkpoint_files.find(self._folder)
        except OSError as error:
            raise CheckpointError(
                f"--output_dir ({self._folder}) cannot be read: "
                f"{file_errors.reason(error)}."
            ) from error

    def _write(
        self, manifest: manifests.Manifest, tensors: Mapping[str, tf.Tensor]
    ) -> None:
        """Writes one checkpoint, somewhere; runs in a thread of its own."""

        def write(folder: pathlib.Path) -> None:
            publish = self._before_publishing
            checkpoint_files.write(folder, manifest, tensors, publish)

        try:
            try:
                write(self._folder)
                self._prune()
                return
            except OSError as error:
                reason = file_errors.reason(error)
            rescued = self._rescue_folder()
            if rescued is not None:
                try:
                    write(pathlib.Path(rescued) / self._folder.name)
                except OSError:
                    rescued = None
            self._error = SaveError(
                f"the checkpoint of step {manifest.step} cannot be written to "
                f"{self._folder}: {reason}",
                rescued,
            )
        except BaseException as error:  # Raised by `check`, in the training's thread.
            self._error = error

    def _prune(self) -> None:
        """Removes all but the newest and the best."""
        entries = self.entries()
        best = self.best()
        for entry in entries[: -self._keep]:
            if best is None or entry.step != best.step:
                with contextlib.suppress(OSError):
                    checkpoint_files.remove(entry.path)

    def _read(
        self, path: pathlib.Path, convert: bool
    ) -> list[tuple[tf.Variable, tf.Tensor]]:
        """Returns variables of the state with their values in a checkpoint.

        Raises:
          CorruptError: the files are not what was written.
          CheckpointError: they are of another training.
        """
        manifest = _read_manifest(path)
        manifests.verify(path, manifest)
        if manifest.phase != self._phase and self._enter:
            self.begin(manifest.phase, self._enter(manifest.phase))
        try:
            variables = checkpoint_match.match(
                self._state.named(), manifest.tensors, convert
            )
            dtypes = {name: manifest.tensors[name]["dtype"] for name in variables}
            values = checkpoint_files.read_tensors(path, dtypes)
        except checkpoint_match.MismatchError as error:
            raise CheckpointError(
                f"--resume: the checkpoint {path} does not fit this training: {error}."
            ) from error
        except OSError as error:
            raise manifests.CorruptError(file_errors.reason(error)) from error
        return [
            (variable, tf.cast(value, variable.dtype))
            for variable, value in zip(variables.values(), values, strict=True)
        ]


def _read_manifest(path: pathlib.Path) -> manifests.Manifest:
    """Reads a manifest that fits the name of its folder; raises CorruptError."""
    manifest = manifests.read(path)
    if manifest.step != checkpoint_files.step_of(path):
        raise manifests.CorruptError(f"{manifests.FILE} is of another checkpoint")
    return manifest
