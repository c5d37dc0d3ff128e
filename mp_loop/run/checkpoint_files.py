"""One checkpoint on the disk: a folder, `step-00001200`, written whole or not at all.

    state.index, state.data-*   TensorFlow's own format, a tensor for each variable
    manifest.json               names, dtypes, shapes; length and SHA-256 of each file

The files are written under another name, flushed to the disk, and get the name of
the checkpoint last. Nothing is pickled: `tf.train.load_checkpoint("step-00001200/
state")` reads the tensors.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import tensorflow as tf

from mp_loop.run import file_errors, files, manifests

_NAME = re.compile(r"step-(\d{8,})")
_STATE = "state"
_REPLACED = ".old"


def step_of(path: pathlib.Path) -> int:
    """The step in the name of a checkpoint."""
    return int(_NAME.fullmatch(path.name)[1])


def find(folder: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints in a folder, by step. Raises OSError."""
    try:
        paths = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(paths, key=step_of)


def write(
    folder: pathlib.Path,
    manifest: manifests.Manifest,
    tensors: Mapping[str, tf.Tensor],
    before_publishing: Callable[[], None],
) -> None:
    """Writes one checkpoint, or raises OSError and leaves everything as it was.

    Args:
      folder: of the checkpoints; made if missing, but not the folder that holds it.
      manifest: what it holds, apart from `files`.
      tensors: on the host, by name.
      before_publishing: called when the files are on the disk, before they get the
        name of the checkpoint.
    """
    if not folder.is_dir():
        folder.mkdir()
        files.flush(folder.parent)
    final = folder / f"step-{manifest.step:08d}"
    new = _hidden(final)
    remove_leftovers(folder)
    try:
        new.mkdir()
        _write_tensors(new, tensors)
        manifests.write(new, manifest)
        for path in new.iterdir():
            files.flush(path)
        files.flush(new)
        before_publishing()
        if final.exists():  # of a run that went back to before this step
            put_aside(final, _REPLACED)  # `undo_replacements` if we die right here
        os.rename(new, final)
        files.flush(folder)
        remove_leftovers(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def read_tensors(path: pathlib.Path, dtypes: Mapping[str, str]) -> Sequence[tf.Tensor]:
    """Reads tensors, given by name with their dtypes, in order. Raises OSError."""
    with (
        tf.device("CPU:0"),
        file_errors.tensorflow_to_os(),
        _without_patterns(path) as folder,
    ):
        return tf.raw_ops.RestoreV2(
            prefix=str(folder / _STATE),
            tensor_names=list(dtypes),
            shape_and_slices=[""] * len(dtypes),
            dtypes=list(dtypes.values()),
        )


def remove(path: pathlib.Path) -> None:
    """Removes a checkpoint: a process that dies leaves it whole, or a leftover."""
    hidden = _hidden(path)
    os.rename(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes what processes that died left, and checkpoints that were replaced."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f"step-*{_REPLACED}"):
        if path.with_suffix("").exists():  # else: see `undo_replacements`
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _without_patterns(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a name for a folder that TensorFlow does not take for a pattern.

    Its checkpoints are looked for with wildcards, as in `runs/[a]`.
    """
    if not re.search(r"[*?\[\\]", str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = pathlib.Path(folder) / "checkpoint"
        link.symlink_to(path.absolute())
        yield link


def put_aside(path: pathlib.Path, ending: str) -> None:
    """Renames a checkpoint so that it is one no more."""
    aside = _aside(path, ending)
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)


def undo_replacements(folder: pathlib.Path) -> None:
    """Gives checkpoints back the names that a process took and did not give anew."""
    for path in folder.glob(f"step-*{_REPLACED}"):
        final = path.with_suffix("")
        if not final.exists():
            os.rename(path, final)


def _write_tensors(folder: pathlib.Path, tensors: Mapping[str, tf.Tensor]) -> None:
    with tf.device("CPU:0"), file_errors.tensorflow_to_os():
        tf.raw_ops.SaveV2(
            prefix=str(folder / _STATE),
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=list(tensors.values()),
        )


def _hidden(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _aside(path: pathlib.Path, ending: str) -> pathlib.Path:
    return path.with_name(path.name + ending)
