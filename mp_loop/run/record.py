"""The run folder: every file of a run is written, and read back, here.

    run = Run.create(output_dir, flagfile_text)         # or Run.reopen(..., step)
    run.log({"step": 20, "loss": 0.7, ...})             # metrics.jsonl, TensorBoard
    run.log_evaluation(20, {"eval_loss": 0.6, "eval_accuracy": 0.8})
    run.write_summary({...})
    run.close()

A file is either appended to, a whole line at a time, or replaced whole, so that
a reader never sees half of one. A run holds a lock on its folder while it lives.
When the folder can no longer be written (a full disk, say), the run goes on in a
rescue folder, which holds all that was logged: `run.rescued`. JSON has no NaN or
infinity: such numbers are the strings "nan", "inf" and "-inf" in the files and
floats again when read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mp_loop.hardware import environment

FLAGS_FILE = "flags.txt"
METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
NUMERICS_FILE = "numerics.jsonl"
SUMMARY_FILE = "summary.json"

_NOT_FINITE = ("nan", "inf", "-inf")

logger = logging.getLogger(__name__)


class RecordError(ValueError):
    """A run folder cannot be used as asked; the message is one line."""


class Lock:
    """Held by the one process that writes a folder; gone when that process is.

    The system keeps it, on the folder itself: no file is left that could be stale.
    """

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        """Takes the lock.

        Raises:
          RecordError: a living process has it.
        """
        import fcntl  # Unix only.

        self._descriptor = os.open(output_dir, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise RecordError(
                f"--output_dir ({output_dir}) is being written by another process; "
                "wait for its end, or choose another folder."
            ) from None
        except OSError as error:  # Some network file systems have no locks.
            logger.warning(
                "%s cannot be locked (%s): see that no other process writes there.",
                output_dir,
                error.strerror,
            )

    def release(self) -> None:
        """Gives the lock back; more than once does no harm."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Run:
    """The open folder of one run.

    Attributes:
      folder: where files go.
      rescued: whether `folder` is a rescue folder, since the run's own cannot be
        written.
      failure: why not, on one line.
    """

    def __init__(self, folder: pathlib.Path, lock: Lock) -> None:
        """Opens the logs of an existing folder; use `create` or `reopen`."""
        self.folder = folder
        self.rescued = False
        self.failure = ""
        self._lock = lock
        self._guard = threading.RLock()  # a thread that writes checkpoints may rescue
        self._open()

    @property
    def checkpoints(self) -> str:
        """The folder of the checkpoints."""
        return str(self.folder / "checkpoints")

    @property
    def model_path(self) -> str:
        """Where the trained model goes."""
        return str(self.folder / "model.keras")

    @classmethod
    def create(cls, output_dir: str, flagfile_text: str) -> Run:
        """Starts a run in a new folder.

        Args:
          output_dir: the folder; made if missing.
          flagfile_text: flags that replay the run; becomes flags.txt.

        Raises:
          RecordError: the folder holds a run, is a file, or cannot be written.
        """
        folder = _named(output_dir)
        if (folder / FLAGS_FILE).exists():
            raise RecordError(
                f"--output_dir ({output_dir}) already holds a run; add --resume to "
                "continue it, or choose another folder."
            )
        for name in (METRICS_FILE, EVALUATIONS_FILE, NUMERICS_FILE):
            if (folder / name).exists():
                raise RecordError(
                    f"--output_dir ({output_dir}) holds {name} of something else; "
                    "choose another folder."
                )
        with _refuse_unwritable(output_dir):
            folder.mkdir(parents=True, exist_ok=True)
            with _released_on_error(Lock(folder)) as lock:
                if (folder / FLAGS_FILE).exists():  # Another process was faster.
                    raise RecordError(
                        f"--output_dir ({output_dir}) already holds a run."
                    )
                write_atomically(folder / FLAGS_FILE, flagfile_text)
                _write_json(folder / "environment.json", environment.environment())
                return cls(folder, lock)

    @classmethod
    def reopen(
        cls, output_dir: str, flagfile_text: str, step: int, lock: Lock | None = None
    ) -> Run:
        """Continues a run from the checkpoint of `step`.

        Lines of later steps, and TensorBoard's, which the run will write again, are
        dropped.

        Args:
          output_dir: the folder of the run.
          flagfile_text: flags that replay the run; becomes flags.txt.
          step: the last step whose records are kept.
          lock: of the folder, where it was taken before.

        Raises:
          RecordError: the folder holds no run, a damaged one, is being written by
            another process, or cannot be written.
        """
        folder = _named(output_dir)
        if not (folder / FLAGS_FILE).exists():
            raise RecordError(
                f"--output_dir ({output_dir}) holds no run to resume; leave "
                "--resume out to start one."
            )
        with (
            _refuse_unwritable(output_dir),
            _released_on_error(lock or Lock(folder)) as lock,
        ):
            _sweep(folder)
            _drop_after(folder, step)
            write_atomically(folder / FLAGS_FILE, flagfile_text)
            _write_json(folder / "environment.json", environment.environment())
            return cls(folder, lock)

    def log(self, line: Mapping[str, Any]) -> None:
        """Records one line of training metrics; `line["step"]` is its step."""
        with self._guard:
            self._append(METRICS_FILE, "train", line)

    def log_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Records one evaluation, made after `step` steps."""
        with self._guard:
            self._append(EVALUATIONS_FILE, "eval", {"step": step, **values})

    def log_setup(self, config: Mapping[str, Any], graph: Any = None) -> None:
        """Shows TensorBoard what the run is: its settings, and the graph of a step.

        Args:
          config: numbers, words and truth values; what is None is left out.
          graph: `tf.Graph`, or None.
        """
        import tensorflow as tf
        from tensorboard.plugins.hparams import api as hparams

        given = {name: value for name, value in config.items() if value is not None}
        try:
            with self._writer.as_default(step=0):
                hparams.hparams(given)
                if graph is not None:
                    tf.summary.graph(graph)
        except (OSError, tf.errors.OpError) as error:
            self.rescue(error)

    def sync(self) -> None:
        """Waits until every line is on the disk."""
        for log in self._logs.values():
            log.sync()

    def rewind(self, step: int) -> None:
        """Drops what was recorded after `step`: the run will write it again."""
        self._close_logs()
        _drop_after(self.folder, step)
        self._open()

    def rescue(self, why: BaseException | str) -> str | None:
        """Goes on in a new folder, with all that was logged so far.

        Returns:
          The folder; None if nowhere could be written.
        """
        import tensorflow as tf

        with self._guard:
            if self.rescued:
                return str(self.folder)
            kept = {name: log.read() for name, log in self._logs.items()}
            for root in dict.fromkeys([tempfile.gettempdir(), "/dev/shm"]):
                with contextlib.suppress(OSError, tf.errors.OpError):
                    self._move(root, kept)
                    break
            # Last: who reads it without the guard finds the rest in place.
            self.failure = self.failure or " ".join(str(why).split())
            return str(self.folder) if self.rescued else None

    def _move(self, root: str, kept: Mapping[str, bytes]) -> None:
        """Goes on in a new folder under `root`, or raises and changes nothing."""
        before = self.folder
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="mp_loop_", dir=root))
        try:
            for name, text in kept.items():
                (self.folder / name).write_bytes(text)
            text = f"{self._flagfile}--output_dir={self.folder}\n"
            (self.folder / FLAGS_FILE).write_text(text, encoding="utf-8")
            (self.folder / "checkpoints").mkdir()
            self._close_logs()
            self._open()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = before
            raise
        self.rescued = True

    def log_numerics(self, line: Mapping[str, Any]) -> None:
        """Records what a probe saw (`probe_report.line`), and its histograms.

        numerics.jsonl gets a line; TensorBoard the histograms of all exponents, over
        the logarithm to base 2 of the magnitude, zeros left out.
        """
        with self._guard:
            if NUMERICS_FILE not in self._logs:  # Most runs have none.
                self._logs[NUMERICS_FILE] = _Log(self.folder / NUMERICS_FILE)
            self._append(NUMERICS_FILE, "numerics", line)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Everything logged so far, in order, before a resume included."""
        return read_metrics(self.folder)

    def read_evaluations(self) -> list[dict[str, Any]]:
        """Every evaluation so far, in order; each has its `step`."""
        return read_evaluations(self.folder)

    def write_model(self, model: Any) -> None:
        """Writes model.keras, whole or not at all."""
        path = pathlib.Path(self.model_path)
        # Keras wants its ending.
        temporary = path.with_name(f".{os.getpid()}.{path.name}")
        try:
            model.save(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def read_numerics(self) -> list[dict[str, Any]]:
        """What the probes saw so far, in order."""
        return read_numerics(self.folder)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json."""
        _write_json(self.folder / SUMMARY_FILE, summary)

    def close(self) -> None:
        """Closes the files and gives the lock back; the run logs no more."""
        with self._guard:
            self._close_logs()
            self._lock.release()

    def _open(self) -> None:
        import tensorflow as tf  # Here, so that commands refuse bad flags at once.

        self._flagfile = (self.folder / FLAGS_FILE).read_text(encoding="utf-8")
        names = [METRICS_FILE, EVALUATIONS_FILE]
        if (self.folder / NUMERICS_FILE).exists():
            names.append(NUMERICS_FILE)
        self._logs = {name: _Log(self.folder / name) for name in names}
        try:
            folder = str(self.folder / "tensorboard")
            self._writer = tf.summary.create_file_writer(folder)
        except tf.errors.OpError as error:
            raise OSError(None, error.message.split("; ")[-1]) from error

    def _close_logs(self) -> None:
        import tensorflow as tf

        for log in self._logs.values():
            log.close()
        # Nothing is left to be written; a disk that is full may say so once more.
        with contextlib.suppress(tf.errors.OpError):
            self._writer.close()

    def _append(self, name: str, prefix: str, line: Mapping[str, Any]) -> None:
        """Writes a line; where the folder cannot take it, in a rescue folder."""
        import tensorflow as tf

        text = _to_line(line).encode()
        try:
            self._logs[name].write(text)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            if self.rescued or self.rescue(reason) is None:
                return  # Nowhere: `failure` tells.
            self._logs[name].write(text)
        try:
            if name == NUMERICS_FILE:
                self._histograms_to_tensorboard(line)
            else:
                self._to_tensorboard(prefix, line)
        except (OSError, tf.errors.OpError) as error:
            if not self.rescued:
                self.rescue(error)

    def _to_tensorboard(self, prefix: str, line: Mapping[str, Any]) -> None:
        import tensorflow as tf

        with self._writer.as_default(step=int(line["step"])):
            for name, value in line.items():
                value = _plain(value)
                if name != "step" and isinstance(value, (int, float)):
                    tag = f"{prefix}/{name.removeprefix('eval_')}"
                    tf.summary.scalar(tag, value)
        # Leaving the context has flushed the writer.

    def _histograms_to_tensorboard(self, line: Mapping[str, Any]) -> None:
        import tensorflow as tf
        from tensorboard.plugins.histogram import metadata

        entries = [
            (f"{values}/{layer['name']}", layer[values])
            for values in ("activations", "activation_grads")
            for layer in line["layers"]
        ]
        entries += [(f"grads/{v['name']}", v["grads"]) for v in line["variables"]]
        described = metadata.create_summary_metadata(
            display_name=None, description="exponents: log2 of the magnitude"
        )
        with self._writer.as_default(step=int(line["step"])):
            for tag, entry in entries:
                if not entry or not entry.get("histogram"):
                    continue
                buckets = [
                    (float(e), float(e + 1), float(count))
                    for e, count in enumerate(entry["histogram"], entry["first"])
                ]
                tf.summary.write(
                    tag, tf.constant(buckets, tf.float64), metadata=described
                )


@contextlib.contextmanager
def _released_on_error(lock: Lock) -> Iterator[Lock]:
    try:
        yield lock
    except BaseException:
        lock.release()
        raise


class _Log:
    """A file that whole lines are appended to; each is there when `write` returns."""

    def __init__(self, path: pathlib.Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        self._size = os.fstat(self._descriptor).st_size

    def write(self, text: bytes) -> None:
        """Appends a line; raises OSError."""
        left = text
        while left:
            left = left[os.write(self._descriptor, left) :]
        self._size += len(text)

    def read(self) -> bytes:
        """The whole lines, also of a file that has lost its name."""
        return os.pread(self._descriptor, self._size, 0)

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes the file; more than once does no harm."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _sweep(folder: pathlib.Path) -> None:
    """Removes what processes that were killed had begun to write."""
    for path in [*folder.glob(".*"), *folder.glob("tensorboard/.*")]:
        if re.fullmatch(r"\.(\d+\.model\.keras|.+\.\d+)", path.name):
            path.unlink()


def _drop_after(folder: pathlib.Path, step: int) -> None:
    """Drops from all records of a run what came after `step`.

    Raises:
      RecordError: a record is damaged; then nothing has been changed.
    """
    kept = {
        name: [line for line in _read_lines(folder / name) if line["step"] <= step]
        for name in (METRICS_FILE, EVALUATIONS_FILE)
    }
    if (folder / NUMERICS_FILE).exists():
        # A look is taken before the step that follows: it will be taken again.
        looks = _read_lines(folder / NUMERICS_FILE)
        kept[NUMERICS_FILE] = [line for line in looks if line["step"] < step]
    for name, lines in kept.items():
        write_atomically(folder / name, "".join(map(_to_line, lines)))
    for path in sorted((folder / "tensorboard").glob("events.out.tfevents.*")):
        _drop_events_after(path, step)


def _drop_events_after(path: pathlib.Path, step: int) -> None:
    """Rewrites an event file without later steps; half of a last event goes too."""
    import tensorflow as tf
    from google.protobuf import message

    records, kept = [], 0
    with contextlib.suppress(tf.errors.DataLossError, message.DecodeError):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            if event.step <= step:
                records.append(record)
                kept += event.HasField("summary")
    if not kept:
        path.unlink()
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with tf.io.TFRecordWriter(str(temporary)) as file:
        for record in records:
            file.write(record)
    os.replace(temporary, path)


def read_metrics(output_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the metrics of a run; a half-written last line is left out."""
    return _read_lines(pathlib.Path(output_dir) / METRICS_FILE)


def read_evaluations(output_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the evaluations of a run; a half-written last line is left out."""
    return _read_lines(pathlib.Path(output_dir) / EVALUATIONS_FILE)


def read_numerics(output_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads what the probes of a run saw; a half-written last line is left out."""
    return _read_lines(pathlib.Path(output_dir) / NUMERICS_FILE)


def read_summary(output_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the summary of a finished run.

    Raises:
      RecordError: there is none, or it is not a JSON object.
    """
    path = pathlib.Path(output_dir) / SUMMARY_FILE
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(summary, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is not the summary of a run: {error}.") from error
    return _restored(summary)


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all, also when the machine stops."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def to_json(value: Any) -> str:
    """Valid JSON on several lines, numbers that are not finite as strings."""
    return json.dumps(_plain(value, for_json=True), indent=2, allow_nan=False) + "\n"


def _named(output_dir: str) -> pathlib.Path:
    """The folder as a path; raises RecordError where it cannot be one."""
    if not output_dir:
        raise RecordError("--output_dir must name a folder for the run.")
    folder = pathlib.Path(output_dir)
    with _refuse_unwritable(output_dir):
        if folder.exists() and not folder.is_dir():
            raise RecordError(f"--output_dir ({output_dir}) must be a folder.")
    return folder


@contextlib.contextmanager
def _refuse_unwritable(output_dir: str) -> Any:
    """Turns the system's refusal to write into a RecordError."""
    try:
        yield
    except OSError as error:
        raise RecordError(
            f"--output_dir ({output_dir}) must be writable: "
            f"{error.strerror or type(error).__name__}."
        ) from error


def _to_line(line: Mapping[str, Any]) -> str:
    return json.dumps(_plain(line, for_json=True), allow_nan=False) + "\n"


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, to_json(value))


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads a file of JSON objects; a half-written last line is left out."""
    try:
        texts = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}.") from error
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            if not isinstance(line["step"], int):  # Every line has its step.
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            # The last text is empty, or was being written when the run stopped.
            if number < len(texts):
                raise RecordError(
                    f"{path} is damaged: line {number} is not an object with a step."
                ) from error
        else:
            lines.append(_restored(line))
    return lines


def _plain(value: Any, for_json: bool = False) -> Any:
    """Python's own numbers, lists and dicts, from NumPy's and TensorFlow's too."""
    plain: Callable[[Any], Any] = lambda inner: _plain(inner, for_json)  # noqa: E731
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if hasattr(value, "numpy"):
        value = value.numpy()
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if for_json and isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _restored(value: Any) -> Any:
    """The inverse of `_plain` on what JSON gave."""
    if isinstance(value, dict):
        return {name: _restored(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_restored(inner) for inner in value]
    return float(value) if value in _NOT_FINITE else value
