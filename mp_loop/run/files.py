"""Files that are whole or not there, whenever a process or a machine stops.

    files.write_atomically(path, text)

The new content is written under another name, flushed to the disk, and renamed; see
`rendering.whole_files`.
"""

from __future__ import annotations

import errno
import os
import pathlib
import re
import stat

from mp_loop.rendering import whole_files


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with (
        whole_files.replacing(path, whole_files.temporary(path)) as name,
        open(name, "w", encoding="utf-8", newline="\n") as file,
    ):
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_regular(
    path: str | os.PathLike[str], most: int | None = None
) -> tuple[bytes, os.stat_result]:
    """Reads a file that has an end: no device, pipe, or file of the kernel's.

    Args:
      path: of the file.
      most: the most bytes that it may hold; None: any number.

    Returns:
      The content, and the file's status.

    Raises:
      OSError: it cannot be read, is no regular file, or is longer.
      ValueError: the path cannot be one.
    """
    # A pipe without a writer, and the kernel's log, would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        content = file.read(-1 if most is None else most + 1)
    if content is None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    if most is not None and len(content) > most:
        raise OSError(errno.EFBIG, f"it holds more than {most} bytes")
    return content, status


def flush(path: str | os.PathLike[str]) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(folder: pathlib.Path) -> None:
    """Waits until a folder's own files and their names are on the disk."""
    for path in folder.iterdir():
        if path.is_file():
            flush(path)
    flush(folder)


def flush_tree(folder: pathlib.Path) -> None:
    """Waits until all that a folder holds is on the disk."""
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


def temporary_model(path: pathlib.Path) -> pathlib.Path:
    """The name under which a model is written first: Keras wants its ending."""
    return path.with_name(f".{os.getpid()}.{path.name}")


def is_leftover(path: pathlib.Path) -> bool:
    """Whether a name is as `whole_files.temporary` gives, or a model's first one."""
    return bool(re.fullmatch(r"\.(\d+\.(model|predictor)\.keras|.+\.\d+)", path.name))


def remove_leftovers(folder: pathlib.Path) -> None:
    """Removes the temporary files and folders of processes that were killed."""
    for path in folder.glob(".*"):
        if is_leftover(path):
            whole_files.remove(path)
