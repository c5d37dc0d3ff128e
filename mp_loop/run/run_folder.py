"""The folder of one run, from its first file to its last.

    run = RunFolder.create(output_dir, flagfile)     # or RunFolder.reopen(..., step)
    run.log({"step": 20, "loss": 0.7, ...})          # metrics.jsonl, TensorBoard
    run.log_evaluation(20, {"eval_loss": 0.6, "eval_accuracy": 0.8})
    run.write_model(model)                           # model.keras
    run.write_predictor(predictor, names)            # predictor.keras, classes.json
    run.write_summary({...})                         # summary.json
    run.close()

A file is either appended to, a whole line at a time, or replaced whole, so that
a reader never sees half of one. The folder is locked while the run is open. When it
can no longer be written (a full disk, say), the run continues in a rescue folder,
which holds all that was logged: `run.rescued`.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mp_loop.config import errors, json_values
from mp_loop.hardware import environment
from mp_loop.rendering import whole_files
from mp_loop.run import (
    file_errors,
    files,
    locking,
    records,
    rescue,
    run_logs,
    strict_json,
)

if TYPE_CHECKING:  # A command that only names a run folder must not wait for them.
    import keras
    import tensorflow as tf


class RunFolder:
    """The open folder of one run.

    Attributes:
      folder: where files go.
      rescued: whether `folder` is a rescue folder, because the run's own folder
        cannot be written.
      failure: why not, on one line.
    """

    def __init__(self, folder: pathlib.Path, lock: locking.FolderLock) -> None:
        """Opens the logs of an existing folder; use `create` or `reopen`."""
        self.folder = folder
        self.rescued = False
        self.failure = ""
        self._lock = lock
        self._guard = threading.RLock()  # a thread that writes checkpoints may rescue
        self._flagfile = (folder / records.FLAGS_FILE).read_text(encoding="utf-8")
        self._kept = _content(folder, records.DATA_FILE)  # for a rescue folder
        self._logs = run_logs.RunLogs(folder)

    @property
    def checkpoints(self) -> str:
        """The folder of the checkpoints."""
        return str(self.folder / records.CHECKPOINTS_FOLDER)

    @classmethod
    def create(
        cls, output_dir: str, flagfile: str, data: json_values.Object | None = None
    ) -> RunFolder:
        """Starts a run in a new folder.

        Args:
          output_dir: the folder; made if missing.
          flagfile: flags that replay the run; becomes flags.txt.
          data: the fingerprint of its data; becomes data.json.

        Raises:
          RecordError: the folder holds something, is a file, or cannot be written.
        """
        refuse_used(output_dir)
        folder = pathlib.Path(output_dir)
        with _refuse_unwritable(output_dir):
            folder.mkdir(parents=True, exist_ok=True)
            with _released_on_error(locking.FolderLock(folder)) as lock:
                refuse_used(output_dir)  # Another process may have been faster.
                files.remove_leftovers(folder)
                _write_description(folder, flagfile, data)
                return cls(folder, lock)

    @classmethod
    def reopen(
        cls,
        output_dir: str,
        flagfile: str,
        step: int,
        lock: locking.FolderLock | None = None,
        data: json_values.Object | None = None,
    ) -> RunFolder:
        """Continues a run from the checkpoint of `step`.

        Lines of later steps, and TensorBoard's, are removed: the run will write them
        again.

        Args:
          output_dir: the folder of the run.
          flagfile: flags that replay the run; becomes flags.txt.
          step: the last step whose records are kept.
          lock: of the folder, if it was taken before.
          data: the fingerprint of its data; becomes data.json.

        Raises:
          RecordError: the folder holds no run, a damaged one, is being written by
            another process, or cannot be written.
        """
        folder = _as_folder(output_dir)
        if not (folder / records.FLAGS_FILE).exists():
            raise errors.RecordError(
                f"--output_dir ({output_dir}) holds no run to resume; leave "
                "--resume out to start one."
            )
        with (
            _refuse_unwritable(output_dir),
            _released_on_error(lock or locking.FolderLock(folder)) as lock,
        ):
            files.remove_leftovers(folder)
            files.remove_leftovers(folder / records.TENSORBOARD_FOLDER)
            # A run that begins once more writes its setup again, which is of step 0.
            run_logs.drop_after(folder, step or -1)
            _write_description(folder, flagfile, data)
            return cls(folder, lock)

    def log(self, line: json_values.Object) -> None:
        """Records one line of training metrics; `line["step"]` is its step."""
        with self._guard:
            self._append(records.METRICS_FILE, line)
            with self._rescue_on_error():
                self._logs.events.write_scalars("train", line)

    def log_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Records one evaluation, made after `step` steps."""
        line = {"step": step, **values}
        with self._guard:
            self._append(records.EVALUATIONS_FILE, line)
            with self._rescue_on_error():
                self._logs.events.write_scalars("eval", line)

    def log_numerics(self, line: json_values.Object) -> None:
        """Records what a probe saw (`probe_report.summarize`), with its histograms."""
        with self._guard:
            self._append(records.NUMERICS_FILE, line)
            with self._rescue_on_error():
                self._logs.events.write_histograms(line)

    def log_setup(
        self, config: json_values.Object, graph: tf.Graph | None = None
    ) -> None:
        """Shows TensorBoard what the run is: see `tensorboard.EventLog.write_setup`."""
        with self._guard, self._rescue_on_error():
            self._logs.events.write_setup(config, graph)

    def sync(self) -> None:
        """Waits until every line is on the disk."""
        self._logs.sync()

    def rewind(self, step: int) -> None:
        """Removes what was recorded after `step`: the run will write it again."""
        self._logs.close()
        run_logs.drop_after(self.folder, step)
        self._logs = run_logs.RunLogs(self.folder)

    def rescue(self, why: str) -> str | None:
        """Continues in a new folder, with all that was logged so far.

        Returns:
          The folder; None if none could be written.
        """
        with self._guard:
            if self.rescued:
                return str(self.folder)
            found = self._logs.read() | self._kept
            for root in rescue.roots():
                with contextlib.suppress(OSError):
                    self._move(rescue.make_folder(root, self._flagfile, found))
                    break
            # Last: who reads it without the guard finds the rest in place.
            self.failure = self.failure or why
            return str(self.folder) if self.rescued else None

    def write_model(self, model: keras.Model) -> None:
        """Writes model.keras, whole or not at all."""
        _save(model, self.folder / records.MODEL_FILE)

    def write_predictor(
        self,
        predictor: keras.Model | None,
        class_names: Sequence[str],
        columns: Sequence[str] = (),
        save_tokenizer: Callable[[str], None] | None = None,
    ) -> None:
        """Writes predictor.keras, classes.json, and what describes other inputs.

        Args:
          predictor: what `predictors.make` returned; None: the model cannot be part
            of one, and a predictor.keras of an earlier end is removed.
          class_names: in the order of the model's outputs.
          columns: of a table, those that the inputs are made of: columns.json.
          save_tokenizer: of texts, writes the tokenizer into a folder, tokenizer/.
        """
        for name, what in (
            (records.CLASSES_FILE, class_names),
            (records.COLUMNS_FILE, columns),
        ):
            if what:
                text = strict_json.to_document(list(what))
                files.write_atomically(self.folder / name, text)
        folder = self.folder / records.TOKENIZER_FOLDER
        # It does not change: what an earlier end of the run left is this one.
        if save_tokenizer is not None and not folder.exists():
            hidden = whole_files.temporary(folder)
            with whole_files.replacing(folder, hidden) as temporary:
                save_tokenizer(str(temporary))
                files.flush_tree(temporary)
        path = self.folder / records.PREDICTOR_FILE
        if predictor is None:
            path.unlink(missing_ok=True)
        else:
            _save(predictor, path)

    def write_test_results(self, found: json_values.Object | None) -> None:
        """Writes test_results.json; None: that of an earlier end is removed."""
        path = self.folder / records.TEST_RESULTS_FILE
        if found is None:
            path.unlink(missing_ok=True)
        else:
            files.write_atomically(path, strict_json.to_line(found))

    def write_coverage(self, values: json_values.Object) -> None:
        """Writes coverage.json."""
        text = strict_json.to_document(values)
        with self._guard, self._rescue_on_error():
            files.write_atomically(self.folder / records.COVERAGE_FILE, text)

    def write_summary(self, summary: json_values.Object) -> None:
        """Writes summary.json."""
        text = strict_json.to_document(summary)
        files.write_atomically(self.folder / records.SUMMARY_FILE, text)

    def close_logs(self) -> None:
        """Closes what the run appends to; it logs no more."""
        with self._guard:
            self._logs.close()

    def close(self) -> None:
        """Closes the logs and, when all files are on the disk, releases the lock.

        Calling it again does nothing.
        """
        self.close_logs()
        with contextlib.suppress(OSError):  # a folder that has vanished, say
            files.flush_all(self.folder)
        self._lock.release()

    def _append(self, name: str, line: json_values.Object) -> None:
        """Writes a line; if the folder cannot take it, in a rescue folder."""
        try:
            self._logs.append(name, line)
        except OSError as error:
            if self.rescued or self.rescue(file_errors.reason(error)) is None:
                return  # `failure` tells.
            self._logs.append(name, line)

    @contextlib.contextmanager
    def _rescue_on_error(self) -> Iterator[None]:
        """Inside, an error of the files makes the run continue in a rescue folder."""
        try:
            yield
        except OSError as error:
            if not self.rescued:
                self.rescue(file_errors.reason(error))

    def _move(self, folder: pathlib.Path) -> None:
        """Continues in another folder; where that fails, it is removed."""
        try:
            logs = run_logs.RunLogs(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._logs.close()
        self._logs, self.folder, self.rescued = logs, folder, True


def refuse_used(output_dir: str) -> None:
    """Refuses to start a run in a folder that holds anything.

    A run replaces files by name (the model, checkpoints): what is not its own would be
    lost, or taken for its own. Temporary files of a process that died do not count.

    Raises:
      RecordError: the folder holds a run or other files, or cannot be read.
    """
    folder = _as_folder(output_dir)
    with _refuse_unwritable(output_dir):
        if not folder.exists():
            return
        found = [path.name for path in folder.iterdir() if not files.is_leftover(path)]
    if records.FLAGS_FILE in found:
        raise errors.RecordError(
            f"--output_dir ({output_dir}) already holds a run; add --resume to "
            "continue it, or choose another folder."
        )
    if found:
        raise errors.RecordError(
            f"--output_dir ({output_dir}) must be new or empty; it holds "
            f"{min(found)!r}, which belongs to no run. Choose another folder."
        )


def _write_description(
    folder: pathlib.Path, flagfile: str, data: json_values.Object | None
) -> None:
    """Writes what the run is and what it runs on."""
    files.write_atomically(folder / records.FLAGS_FILE, flagfile)
    text = strict_json.to_document(environment.environment())
    files.write_atomically(folder / records.ENVIRONMENT_FILE, text)
    if data is not None:
        text = strict_json.to_document(data)
        files.write_atomically(folder / records.DATA_FILE, text)


def _content(folder: pathlib.Path, name: str) -> dict[str, bytes]:
    """The content of a file by its name; nothing where there is no such file."""
    path = folder / name
    return {name: path.read_bytes()} if path.exists() else {}


def _save(model: keras.Model, path: pathlib.Path) -> None:
    """Writes a model, whole or not at all."""
    with whole_files.replacing(path, files.temporary_model(path)) as temporary:
        model.save(temporary)
        files.flush(temporary)


def _as_folder(output_dir: str) -> pathlib.Path:
    """The folder as a path; raises RecordError where it cannot be one."""
    if not output_dir:
        raise errors.RecordError("--output_dir must name a folder for the run.")
    folder = pathlib.Path(output_dir)
    with _refuse_unwritable(output_dir):
        if folder.exists() and not folder.is_dir():
            raise errors.RecordError(f"--output_dir ({output_dir}) must be a folder.")
    return folder


@contextlib.contextmanager
def _refuse_unwritable(output_dir: str) -> Iterator[None]:
    """Inside, an error of the files becomes a RecordError."""
    try:
        yield
    except OSError as error:
        reason = file_errors.reason(error)
        raise errors.RecordError(
            f"--output_dir ({output_dir}) must be writable: {reason}."
        ) from error


@contextlib.contextmanager
def _released_on_error(lock: locking.FolderLock) -> Iterator[locking.FolderLock]:
    try:
        yield lock
    except BaseException:
        lock.release()
        raise
