"""TensorFlow's start without what its C++ code has to say."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Inside, what TensorFlow's C++ code says to stderr while it starts is dropped.

    It says so before it reads TF_CPP_MIN_LOG_LEVEL. Python's errors are raised as
    ever.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
