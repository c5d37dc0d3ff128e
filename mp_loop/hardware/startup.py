"""What must happen before, or while, TensorFlow is imported.

    startup.start_tensorflow()
    import tensorflow

Needs no TensorFlow itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from mp_loop.hardware import processor

# With one of these TensorFlow chooses oneDNN's kernels by itself (its file
# core/util/util.cc).
_NEURAL_INSTRUCTIONS = {
    *("avx512_vnni", "avx512_bf16", "avx_vnni"),
    *("amx_tile", "amx_int8", "amx_bf16"),
}


def start_tensorflow(*, slow_onednn: bool = False) -> None:
    """Imports TensorFlow and finds its devices, without a word on stderr.

    Args:
      slow_onednn: whether oneDNN's kernels are slow for what will be computed.
    """
    prefer_onednn(unless=slow_onednn)
    with quiet_start():
        import tensorflow as tf

        tf.config.list_physical_devices()


def prefer_onednn(*, unless: bool = False) -> None:
    """Chooses oneDNN's kernels, unless the user has set TF_ENABLE_ONEDNN_OPTS.

    On x86 processors without instructions for neural networks TensorFlow chooses its
    own kernels, although they are slower there too.

    Args:
      unless: whether oneDNN's kernels are slow for what will be computed; then
        TensorFlow's own are chosen.
    """
    found = processor.instructions() or frozenset()
    if unless:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    elif "avx2" in found and not found & _NEURAL_INSTRUCTIONS:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Inside, nothing reaches stderr: TensorFlow's C++ code logs while it starts.

    Those lines come before it reads TF_CPP_MIN_LOG_LEVEL. Exceptions are raised as
    usual.
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
