"""Files of one JSON object a line, each with its `step`, that only grow.

    log = json_lines.Log(path)
    log.write({"step": 20, "loss": 0.7})     # on the system's side when it returns
    json_lines.read(path).lines              # [{"step": 20, "loss": 0.7}]

A process that dies leaves whole lines and at most half of a last one, which is
left out when the file is read.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence

from mp_loop.config import errors, json_values
from mp_loop.run import file_errors, files, strict_json


class Log:
    """A file that whole lines are appended to."""

    def __init__(self, path: pathlib.Path) -> None:
        """Opens the file; makes it if it is missing."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        self._size = os.fstat(self._descriptor).st_size

    def write(self, line: json_values.Object) -> None:
        """Appends a line; it is there when this returns. Raises OSError."""
        text = strict_json.to_line(line).encode()
        left = text
        while left:
            left = left[os.write(self._descriptor, left) :]
        self._size += len(text)

    def read(self) -> bytes:
        """The whole lines, also of a file that has lost its name."""
        return os.pread(self._descriptor, self._size, 0)

    def sync(self) -> None:
        """Waits until every line is on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Closes the file; calling it again does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclasses.dataclass(frozen=True)
class Read:
    """What a file holds.

    Attributes:
      lines: its objects, in order.
      damaged: for each line that was left out its number and why.
    """

    lines: list[dict[str, json_values.Json]]
    damaged: list[str]


def read(
    path: pathlib.Path,
    damage: Callable[[dict[str, json_values.Json]], str] = lambda line: "",
) -> Read:
    """Reads the objects of a file; what is damaged is named and left out.

    A last line without an end was being written when the run stopped: it is left out
    without a word.

    Args:
      path: the file; one that is missing holds no lines.
      damage: says what is wrong with an object, or returns "".

    Raises:
      RecordError: the file cannot be opened.
    """
    try:
        texts = files.read_regular(path)[0].split(b"\n")
    except FileNotFoundError:
        return Read([], [])
    except OSError as error:
        raise errors.RecordError(
            f"{path} cannot be read: {file_errors.reason(error)}."
        ) from error
    found = Read([], [])
    for number, text in enumerate(texts, start=1):
        try:
            line = strict_json.parse(text)
            wrong = "" if type(line["step"]) is int else "no step"
            wrong = wrong or damage(line)
        except (ValueError, TypeError, KeyError, RecursionError):
            wrong = "not an object with a step"
        if not wrong:
            found.lines.append(line)
        elif number < len(texts):
            found.damaged.append(f"line {number}: {wrong}")
    return found


def rewrite(path: pathlib.Path, lines: Sequence[json_values.Object]) -> None:
    """Replaces a file by these lines, all or none of them."""
    files.write_atomically(path, "".join(map(strict_json.to_line, lines)))
