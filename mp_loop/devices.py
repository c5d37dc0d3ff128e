"""What this machine can do."""

from __future__ import annotations

import tensorflow as tf


def use_xla(choice: str) -> bool:
    """Resolves `--jit_compile`.

    Args:
      choice: "on", "off", or "auto": on a GPU only. On a CPU the plain kernels
        are faster in 16 bits.
    """
    if choice == "auto":
        return has_gpu()
    return choice == "on"


def multiplies_slowly(dtype: str) -> bool:
    """Tells whether products in a dtype are slower here than in float32.

    TensorFlow's CPU kernels for float16 are emulated; for bfloat16 they are not.
    """
    return dtype == "float16" and not has_gpu()


def has_gpu() -> bool:
    """Tells whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))
