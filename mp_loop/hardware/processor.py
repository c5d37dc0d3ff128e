"""The processor, and which of TensorFlow's two sets of kernels it runs.

    prefer_onednn()    # before TensorFlow is imported
    instructions()     # frozenset({"avx2", "fma", ...})

Needs no TensorFlow.
"""

from __future__ import annotations

import os
import pathlib
import platform

# With one of these TensorFlow takes oneDNN's kernels by itself (its
# core/util/util.cc).
_NEURAL = {
    *("avx512_vnni", "avx512_bf16", "avx_vnni"),
    *("amx_tile", "amx_int8", "amx_bf16"),
}


def prefer_onednn(*, unless: bool = False) -> None:
    """Chooses oneDNN's kernels; where TF_ENABLE_ONEDNN_OPTS is set, that decides.

    On x86 processors without instructions for neural networks TensorFlow takes its
    own, which are slower there too.

    Args:
      unless: what will be computed has slow kernels in oneDNN: choose TensorFlow's.
    """
    found = instructions() or frozenset()
    if unless:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    elif "avx2" in found and not found & _NEURAL:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


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


def _cpuinfo() -> str:
    try:
        return pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
