"""Checkpoints that survive: whole or not there, and looked at before they are used.

    checkpoints = Checkpoints(folder, step.state, keep=2)
    done = checkpoints.restore()               # the newest that is whole
    checkpoints.save({"eval_accuracy": 0.9})   # returns at once
    checkpoints.wait()                         # raises what the writing raised

A checkpoint is a folder, `step-00001200`, of

    state.index, state.data-*   TensorFlow's own format, a tensor for each variable
    manifest.json               names, dtypes, shapes; length and SHA-256 of each file

Saving copies the state to the host and returns; a thread writes the copy under
another name, flushes it to the disk, and gives it its name last. A process that
dies at any moment leaves a checkpoint or none, never half of one. What the disk
breaks later is found by the checksums, and the checkpoint before is used. Nothing
is pickled: `tf.train.load_checkpoint("step-00001200/state")` reads the tensors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
_FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(ValueError):
    """A checkpoint does not exist, is damaged, or holds another training."""


class SaveError(RuntimeError):
    """A checkpoint could not be written.

    Attributes:
      rescued: the run folder that it was written to instead, or None.
    """

    def __init__(self, message: str, rescued: str | None):
        super().__init__(message)
        self.rescued = rescued


class _Damaged(Exception):
    """One checkpoint cannot be used; another may."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One checkpoint on disk.

    Attributes:
      step: of the state.
      path: its folder.
      metrics: of the evaluation made at its step; empty without one.
      phase: of the training.
      healthy: the last step before it was not skipped.
      retried: a rollback has started from it.
    """

    step: int
    path: pathlib.Path
    metrics: Mapping[str, float]
    phase: int
    healthy: bool
    retried: bool


class Checkpoints:
    """The checkpoints of one training, in one folder.

    Attributes:
      converted: what was restored was of another precision.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        state: Any,
        keep: int,
        best_by: str = "eval_accuracy",
        before_publishing: Callable[[], None] = lambda: None,
        rescue_folder: Callable[[], str | None] = lambda: None,
        enter: Callable[[int], Any] | None = None,
    ):
        """Nothing is read or written yet.

        Args:
          folder: made when needed, but not the folder that holds it.
          state: a `TrainState`.
          keep: how many of the newest are kept; the best is kept besides.
          best_by: "eval_accuracy" (the highest), "eval_loss" (the lowest), or ""
            for none.
          before_publishing: called in the writing thread when the files are on the
            disk: what else must be there before the checkpoint is.
          rescue_folder: returns a folder in which to write one of the same name
            when `folder` cannot be written, or None.
          enter: brings the training into the phase of a checkpoint, from 0, and
            returns its state; None: there is one phase.
        """
        self._folder = pathlib.Path(folder)
        self._state = state
        self._phase = 0
        self._enter = enter
        self._keep = keep
        self._best_by = best_by
        self._before_publishing = before_publishing
        self._rescue_folder = rescue_folder
        self.converted = False
        self._best: float | None = None
        self._looked = False
        self._damaged: set[pathlib.Path] = set()
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self, metrics: Mapping[str, float] | None = None, retried: bool = False
    ) -> None:
        """Copies the state and starts to write it under its step number.

        Waits for the write before this one, so that at most one copy is held.

        Args:
          metrics: of an evaluation of this very state.
          retried: marks the checkpoint as the start of a rollback.

        Raises:
          SaveError: the write before this one failed.
        """
        self.wait()
        metrics = dict(metrics or {})
        if self.is_best(metrics):
            self._best = metrics[self._best_by]
        # On the host, in the variables' own dtypes. Where nothing has to be moved the
        # copy is made by the next update, which must not write into what others hold.
        with tf.device("CPU:0"):
            tensors = {
                name: tf.identity(variable.read_value())
                for name, variable in self._state.named().items()
            }
        paths = {name: v.name for name, v in self._state.named().items()}
        body = {
            "format": _FORMAT,
            "step": int(tensors["step"]),
            "metrics": metrics,
            "phase": self._phase,
            "healthy": int(tensors["stuck_steps"]) == 0,
            "retried": retried,
            "tensors": {
                name: {
                    "variable": paths[name],
                    "dtype": tensor.dtype.name,
                    "shape": tensor.shape.as_list(),
                }
                for name, tensor in tensors.items()
            },
        }
        # Not a daemon: a process that ends normally writes to the end.
        self._writer = threading.Thread(target=self._write, args=(tensors, body))
        self._writer.start()

    def begin(self, phase: int, state: Any) -> None:
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
        """Raises SaveError if a write has failed; waits for none."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Tells whether an evaluation beats those of all checkpoints so far."""
        self._look()
        value = metrics.get(self._best_by)
        if value is None or math.isnan(value):
            return False
        if self._best is None:
            return True
        better = value < self._best if self._lower() else value > self._best
        return bool(better)

    def restore(self, convert: bool = False) -> int:
        """Restores the newest checkpoint that is whole, bit for bit.

        Nothing is assigned unless everything can be.

        Args:
          convert: takes from a checkpoint of another precision what does not depend
            on it: masters, slots, counters and, where they fit, other weights and
            seeds. Call the step's `reload` afterwards.

        Returns:
          The step of the checkpoint; 0, and nothing is restored, if there is none:
          the run ended before it wrote one.

        Raises:
          CheckpointError: none is whole, or the newest is of another training.
        """
        self._put_back()
        damaged: list[str] = []
        for path in reversed(self._paths()):
            try:
                values = self._read(path, convert)
            except _Damaged as error:
                damaged.append(f"{path} ({error})")
                self._damaged.add(path)
                continue
            for text in damaged:
                logger.warning(
                    "The checkpoint %s is damaged; %s is used instead.", text, path
                )
            for variable, value in values:
                variable.assign(value)
            self.converted = len(values) < len(self._state.named())
            return int(self._state.step.numpy())
        if damaged:
            raise CheckpointError(
                f"--resume: no checkpoint in {self._folder} is whole: "
                f"{'; '.join(damaged)}."
            )
        logger.warning("%s holds no checkpoint yet: from the start.", self._folder)
        return 0

    def restore_healthy(self) -> Entry | None:
        """Restores the newest checkpoint of this phase not made in a row of skips.

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
        for entry in sorted(entries, key=lambda entry: entry.retried):
            with contextlib.suppress(_Damaged):
                for variable, value in self._read(entry.path, convert=False):
                    variable.assign(value)
                return entry
        return None

    def forget_after(self, step: int) -> None:
        """Takes away the checkpoints after `step`: the training goes on from there.

        Those that `restore` found damaged are kept under another name.
        """
        for path in self._paths():
            if _step(path) > step and path in self._damaged:
                _put_aside(path, ".damaged")
            elif _step(path) > step:
                shutil.rmtree(path)
        self._looked = False

    def entries(self) -> list[Entry]:
        """The checkpoints whose manifest can be read, by step."""
        entries = []
        for path in self._paths():
            with contextlib.suppress(_Damaged):
                body = _manifest(path)
                entries.append(
                    Entry(
                        body["step"],
                        path,
                        body["metrics"],
                        body["phase"],
                        body["healthy"],
                        body["retried"],
                    )
                )
        return entries

    def _put_back(self) -> None:
        """Undoes the first half of a replacement that died before the other."""
        for path in self._folder.glob("step-*.old"):
            final = path.with_suffix("")
            if not final.exists():
                os.rename(path, final)

    def _lower(self) -> bool:
        return self._best_by == "eval_loss"

    def _best_entry(self) -> Entry | None:
        """The entry of the best evaluation; of equals, the first."""
        rated = [
            entry
            for entry in self.entries()
            if not math.isnan(entry.metrics.get(self._best_by, math.nan))
        ]
        sign = 1 if self._lower() else -1
        return min(rated, key=lambda e: sign * e.metrics[self._best_by], default=None)

    def _look(self) -> None:
        """Learns from the disk what the best evaluation was."""
        if not self._looked:
            best = self._best_entry()
            self._best = None if best is None else best.metrics[self._best_by]
            self._looked = True

    def _paths(self) -> list[pathlib.Path]:
        """The folders with the name of a checkpoint, by step."""
        try:
            paths = [p for p in self._folder.iterdir() if _NAME.fullmatch(p.name)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise CheckpointError(
                f"--output_dir ({self._folder}) cannot be read: {error.strerror}."
            ) from error
        return sorted(paths, key=_step)

    def _write(self, tensors: dict[str, tf.Tensor], body: dict[str, Any]) -> None:
        """Writes one checkpoint, somewhere; runs in a thread of its own."""
        step = body["step"]
        try:
            try:
                self._write_to(self._folder, tensors, body)
                self._prune()
                return
            except (OSError, tf.errors.OpError) as error:
                reason = _reason(error)
            said = f"the checkpoint of step {step} cannot be written to {self._folder}"
            rescued = self._rescue_folder()
            if rescued is not None:
                try:
                    folder = pathlib.Path(rescued) / self._folder.name
                    self._write_to(folder, tensors, body)
                except (OSError, tf.errors.OpError):
                    rescued = None
            self._error = SaveError(f"{said}: {reason}", rescued)
        except BaseException as error:  # to be raised where it is seen
            self._error = error

    def _write_to(
        self, folder: pathlib.Path, tensors: dict[str, tf.Tensor], body: dict[str, Any]
    ) -> None:
        """Writes one checkpoint: whole, or not at all."""
        if not folder.is_dir():
            folder.mkdir()
            _flush(folder.parent)
        final = folder / f"step-{body['step']:08d}"
        new = folder / f".{final.name}.{os.getpid()}"
        for left in folder.glob(".step-*"):  # by processes that died
            shutil.rmtree(left, ignore_errors=True)
        try:
            new.mkdir()
            with tf.device("CPU:0"):
                tf.raw_ops.SaveV2(
                    prefix=str(new / "state"),
                    tensor_names=list(tensors),
                    shape_and_slices=[""] * len(tensors),
                    tensors=list(tensors.values()),
                )
            files = {
                path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
                for path in sorted(new.iterdir())
            }
            text = json.dumps({**body, "files": files}, sort_keys=True)
            seal = hashlib.sha256(text.encode()).hexdigest()
            (new / MANIFEST_FILE).write_text(f"{text}\n{seal}\n", encoding="utf-8")
            for path in new.iterdir():
                _flush(path)
            _flush(new)
            self._before_publishing()
            if final.exists():  # of a run that went back to before this step
                _put_aside(final, ".old")  # put back if we die right here
            os.rename(new, final)
            _flush(folder)
            shutil.rmtree(_aside(final, ".old"), ignore_errors=True)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise

    def _prune(self) -> None:
        """Removes all but the newest and the best."""
        entries = self.entries()
        best = self._best_entry()
        for entry in entries[: -self._keep]:
            if best is None or entry.step != best.step:
                shutil.rmtree(entry.path, ignore_errors=True)

    def _read(self, path: pathlib.Path, convert: bool) -> list[tuple[Any, tf.Tensor]]:
        """Returns every variable of the state with its value in a checkpoint.

        Raises:
          _Damaged: the files are not what was written.
          CheckpointError: they are of another training.
        """
        body = _manifest(path)
        for name, file in body["files"].items():
            try:
                size = (path / name).stat().st_size
                whole = size == file["bytes"] and _sha256(path / name) == file["sha256"]
            except OSError as error:
                raise _Damaged(f"{name}: {error.strerror}") from error
            if not whole:
                raise _Damaged(f"{name} is not what was written")
        if body["phase"] != self._phase and self._enter:
            self.begin(body["phase"], self._enter(body["phase"]))
        chosen = self._state.named()
        why = _differs(chosen, body["tensors"])
        if why and convert:
            chosen = _convertible(chosen, body["tensors"])
            why = _differs(chosen, {n: body["tensors"].get(n) for n in chosen})
        if why:
            raise CheckpointError(
                f"--resume: the checkpoint {path} does not fit this training: {why}."
            )
        try:
            with tf.device("CPU:0"):
                values = tf.raw_ops.RestoreV2(
                    prefix=str(path / "state"),
                    tensor_names=list(chosen),
                    shape_and_slices=[""] * len(chosen),
                    dtypes=[body["tensors"][name]["dtype"] for name in chosen],
                )
        except tf.errors.OpError as error:
            raise _Damaged(_reason(error)) from error
        return [
            (variable, tf.cast(value, variable.dtype))
            for variable, value in zip(chosen.values(), values, strict=True)
        ]


# What depends on the precision, and what may: see `Checkpoints.restore`.
_OF_THE_PRECISION = ("working_weights/", "loss_scale/")
_PARTLY = ("other_weights/", "seeds/")


def _convertible(
    variables: Mapping[str, Any], there: Mapping[str, Any]
) -> dict[str, Any]:
    """The variables that a checkpoint of another precision must or can fill."""
    chosen = {}
    for name, variable in variables.items():
        if name.startswith(_OF_THE_PRECISION):
            continue
        if name.startswith(_PARTLY):
            fits = {"dtype": variable.dtype.name, "shape": variable.shape.as_list()}
            if not fits.items() <= there.get(name, {}).items():
                continue
        chosen[name] = variable
    return chosen


def _differs(
    variables: Mapping[str, Any], there: Mapping[str, Mapping[str, Any] | None]
) -> str:
    """Tells the first difference between a state and a checkpoint, or nothing."""
    for name, variable in variables.items():
        entry = there.get(name)
        if entry is None:
            return f"it does not hold {name} ({variable.name})"
        here = variable.dtype.name, variable.shape.as_list()
        if (_read_as(name, entry["dtype"]), entry["shape"]) != here:
            return (
                f"{name} ({variable.name}) is {here[0]} {here[1]}; it holds "
                f"{entry['dtype']} {entry['shape']} ({entry['variable']})"
            )
    extra = [name for name in there if name not in variables]
    if extra:
        return f"it also holds {extra[0]} ({there[extra[0]]['variable']})"
    return ""


def _read_as(name: str, dtype: str) -> str:
    """The dtype that a tensor is given: once the scale's integers were int32."""
    return "int64" if name.startswith("loss_scale/") and dtype == "int32" else dtype


def _manifest(path: pathlib.Path) -> dict[str, Any]:
    """Reads the manifest of a checkpoint; raises _Damaged."""
    try:
        text, seal, rest = (path / MANIFEST_FILE).read_bytes().split(b"\n")
        if rest or hashlib.sha256(text).hexdigest().encode() != seal:
            raise ValueError
        body = json.loads(text)
    except OSError as error:
        raise _Damaged(f"{MANIFEST_FILE}: {error.strerror}") from error
    except (ValueError, RecursionError):
        raise _Damaged(f"{MANIFEST_FILE} is not what was written") from None
    if not _lawful(body) or body["step"] != _step(path):
        raise _Damaged(f"{MANIFEST_FILE} is of another checkpoint")
    return body


def _lawful(body: Any) -> bool:
    """Tells whether a manifest has the form that `Checkpoints.save` gives it."""
    kinds = {
        "format": int,
        "step": int,
        "metrics": dict,
        "phase": int,
        "healthy": bool,
        "retried": bool,
        "tensors": dict,
        "files": dict,
    }
    of_tensors = {"variable": str, "dtype": str, "shape": list}
    of_files = {"bytes": int, "sha256": str}

    def fits(value: Any, kinds: Mapping[str, type]) -> bool:
        return isinstance(value, dict) and all(
            isinstance(value.get(name), kind) for name, kind in kinds.items()
        )

    return (
        fits(body, kinds)
        and body["format"] == _FORMAT
        and all(fits(tensor, of_tensors) for tensor in body["tensors"].values())
        and all(fits(file, of_files) for file in body["files"].values())
        and all(pathlib.PurePath(name).name == name for name in body["files"])
        and all(isinstance(v, (int, float)) for v in body["metrics"].values())
    )


def _step(path: pathlib.Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])


def _aside(path: pathlib.Path, ending: str) -> pathlib.Path:
    return path.with_name(path.name + ending)


def _put_aside(path: pathlib.Path, ending: str) -> None:
    aside = _aside(path, ending)
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)


def _sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: pathlib.Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """Why something could not be written or read, on one line."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    # TensorFlow puts the file first: "path; No space left on device".
    said = error.message if isinstance(error, tf.errors.OpError) else str(error)
    return (said.split("; ")[-1].strip().splitlines() or [type(error).__name__])[0]
