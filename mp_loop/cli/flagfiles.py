"""Flagfiles: one flag a line, comments, and inclusions of other flagfiles.

    words = flagfiles.expand(["--flagfile=exp.flags", "--seed=3"])

They mean what absl makes of them. absl itself opens whatever is named and reads to its
end: here every file that is opened must be a regular one, of a bounded size, and the
inclusions come to an end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from mp_loop.config import errors
from mp_loop.run import file_errors, files

_MOST_BYTES = 2**20  # of one file
_MOST_FILES = 200  # opened by one command line

_DIRECTIVE = re.compile(r"--?flagfile(?:=(.*))?", re.DOTALL)


def expand(words: Sequence[str]) -> list[str]:
    """Puts the flags of flagfiles in their places.

    Args:
      words: of a command line, without the program's name.

    Raises:
      UsageError: a file cannot be read, includes itself, or there are too many.
    """
    return _Expansion().words(list(words))


class _Expansion:
    """One command line: counts the files that it opens."""

    def __init__(self) -> None:
        self._opened = 0
        # By device and inode: a file has many names.
        self._open: list[tuple[int, int]] = []

    def words(self, words: list[str]) -> list[str]:
        found: list[str] = []
        while words:
            word = words.pop(0)
            directive = _DIRECTIVE.fullmatch(word)
            if word == "--":
                return [*found, word, *words]
            if not directive:
                found.append(word)
                continue
            name = directive[1]
            if name is None:
                if not words:
                    raise errors.UsageError("--flagfile must name a file.")
                name = words.pop(0)
            found += self._flags_of(name.strip())
        return found

    def _flags_of(self, name: str) -> list[str]:
        """The flags of a file and of those that it includes."""
        if not name:
            raise errors.UsageError("--flagfile () must name a file.")
        self._opened += 1
        if self._opened > _MOST_FILES:
            raise errors.UsageError(
                f"--flagfile ({name}) must not be one of more than {_MOST_FILES} files."
            )
        text, identity = _read(name)
        if identity in self._open:
            raise errors.UsageError(f"--flagfile ({name}) must not include itself.")
        self._open.append(identity)
        found: list[str] = []
        for line in re.split(r"\r\n|\r|\n", text):
            line = line.strip()
            directive = _DIRECTIVE.fullmatch(line)
            if directive:
                found += self._flags_of((directive[1] or "").strip())
            elif line and not line.startswith(("#", "//")):
                found.append(line)
        self._open.pop()
        return found


def _read(name: str) -> tuple[str, tuple[int, int]]:
    """The text of a flagfile, and the file's identity."""
    try:
        content, status = files.read_regular(os.path.expanduser(name), _MOST_BYTES)
        return content.decode("utf-8-sig"), (status.st_dev, status.st_ino)
    except UnicodeDecodeError as error:
        raise errors.UsageError(
            f"--flagfile ({name}) must be UTF-8 text: {error}."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error
        if isinstance(error, OSError):
            reason = file_errors.reason(error)
        shown = name if name.isprintable() else repr(name)
        raise errors.UsageError(
            f"--flagfile ({shown}) cannot be read: {reason}."
        ) from error
