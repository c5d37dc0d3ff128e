"""Errors of files: TensorFlow's become Python's, and the reason fits on one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


def reason(error: OSError) -> str:
    """Why a file could not be written or read, on one line."""
    return error.strerror or type(error).__name__


@contextlib.contextmanager
def tensorflow_to_os() -> Iterator[None]:
    """Inside, TensorFlow's errors become OSError."""
    import tensorflow as tf  # Here: a command refuses bad flags before it is loaded.

    try:
        yield
    except tf.errors.OpError as error:
        # TensorFlow puts the file first: "path; No space left on device".
        lines = error.message.split("; ")[-1].strip().splitlines()
        raise OSError(None, lines[0] if lines else type(error).__name__) from error
