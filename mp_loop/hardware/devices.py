"""The devices that TensorFlow can compute on, and how it should compute there."""

from __future__ import annotations

import tensorflow as tf

from mp_loop.hardware import capability, processor


def find() -> list[capability.Device]:
    """Returns the devices that TensorFlow can compute on, the processor first."""
    found = []
    for physical in tf.config.list_physical_devices():
        kind, name = physical.device_type, physical.name.split("physical_device:")[-1]
        if kind == "CPU":
            found.append(
                capability.Device(
                    kind, name, processor.model(), None, processor.instructions()
                )
            )
        elif not kind.startswith("XLA"):
            details = tf.config.experimental.get_device_details(physical)
            found.append(
                capability.Device(
                    kind,
                    name,
                    details.get("device_name", "unknown"),
                    details.get("compute_capability"),
                )
            )
    return found


def has_gpu() -> bool:
    """Tells whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def use_xla(choice: str) -> bool:
    """Resolves `--jit_compile`.

    Args:
      choice: "on", "off", or "auto": only on a GPU. On a CPU the plain kernels are
        faster in 16 bits.
    """
    if choice == "auto":
        return has_gpu()
    return choice == "on"


def multiplies_slowly(dtype: str) -> bool:
    """Tells whether products in a dtype are slower here than in float32.

    On a processor this is so for float16, and for bfloat16 without instructions for
    it: TensorFlow's kernels then convert number by number.
    """
    cpu = capability.Device("CPU", "CPU:0", instructions=processor.instructions())
    return not has_gpu() and capability.support(cpu, dtype).gain == "no"
