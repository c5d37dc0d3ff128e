"""What this machine can do."""

from __future__ import annotations

import tensorflow as tf

from mp_loop.hardware import capability, processor


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

    On a processor all of float16's are, and those of bfloat16 where it has no
    instructions for them: TensorFlow's kernels then convert number by number.
    """
    cpu = capability.Device("CPU", "CPU:0", instructions=processor.instructions())
    return not has_gpu() and capability.support(cpu, dtype).gain == "no"


def has_gpu() -> bool:
    """Tells whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))
