"""A file, or a folder, that is whole or not there.

    with whole_files.replacing(path, whole_files.temporary(path)) as name:
        model.save(name)

The new content is written under another name, and renamed.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: pathlib.Path, temporary: pathlib.Path) -> Iterator[pathlib.Path]:
    """Renames a file to `path` at the end; on an error it is removed instead.

    Args:
      path: what is replaced, if it exists. A folder takes the place of none.
      temporary: the name to write to, in the same folder. What must outlast the
        machine is on the disk when the block ends.

    Yields:
      `temporary`.
    """
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def remove(path: pathlib.Path) -> None:
    """Removes a file, or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def temporary(path: pathlib.Path) -> pathlib.Path:
    """The name under which something is written first."""
    return path.with_name(f".{path.name}.{os.getpid()}")
