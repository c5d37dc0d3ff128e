"""The processor's name, instructions and cores; needs no TensorFlow."""

from __future__ import annotations

import os
import pathlib
import platform


def instructions() -> frozenset[str] | None:
    """Returns the processor's flags (Linux), None where they cannot be read."""
    for line in _cpuinfo().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86, Arm
            return frozenset(value.lower().split())
    return None


def model() -> str:
    """Returns the processor's name."""
    for line in _cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int | None:
    """Returns the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count()


def _cpuinfo() -> str:
    try:
        return pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
