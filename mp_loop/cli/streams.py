"""Output streams that do not end a command when nobody reads them any more.

    streams.keep_going()       # first of all; then print and write as usual

A reader that stops (`| head`), a closed stream and a full disk are no reason to lose a
training: what cannot be written is dropped.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO


class PatientStream:
    """A text stream whose errors end the stream, and not the program."""

    def __init__(self, stream: TextIO):
        """Takes the stream to write to."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes text, or drops it."""
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes what was written, or drops it."""
        with self._dropping():
            self._stream.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # The next writes, and what is still in the buffer, go nowhere.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def keep_going() -> None:
    """Makes stdout and stderr patient, and able to write any name of a file."""
    sys.stdout = _patient(sys.stdout)
    sys.stderr = _patient(sys.stderr)


def _patient(stream: TextIO | None) -> TextIO | PatientStream:
    if stream is None:  # closed by the shell: `>&-`
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    if isinstance(stream, PatientStream):
        return stream
    with contextlib.suppress(AttributeError, OSError):
        stream.reconfigure(errors="backslashreplace")
    return PatientStream(stream)
