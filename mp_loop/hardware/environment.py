"""Software, drivers and memory of this process, as plain facts."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess
import sys

from mp_loop.config import json_values
from mp_loop.hardware import processor


def peak_memory_bytes() -> int:
    """The most memory this process has held so far (resident set, in bytes)."""
    # Linux' ru_maxrss survives exec: a child reports at least what its parent
    # held. VmHWM is this program's own.
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # Unix only.

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS: bytes.


def peak_gpu_memory_bytes() -> int | None:
    """The most that TensorFlow's tensors took on any one GPU; None without a GPU."""
    import tensorflow as tf

    return max(
        (
            tf.config.experimental.get_memory_info(gpu.name.split("device:")[-1])[
                "peak"
            ]
            for gpu in tf.config.list_logical_devices("GPU")
        ),
        default=None,
    )


def environment() -> dict[str, json_values.Json]:
    """What a run ran on: versions, machine, commit. No names of hosts or users."""
    import numpy as np
    import tensorflow as tf

    gpus = []
    for device in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(device)
        gpus.append(details.get("device_name", "unknown"))
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": tf.keras.__version__,
        "numpy": np.__version__,
        "mp_loop": _own_version(),
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "cpu": processor.model(),
        "cpu_cores": os.cpu_count(),
        "gpus": gpus,
        "tf32": tf.config.experimental.tensor_float_32_execution_enabled(),
    }


def _own_version() -> str | None:
    try:
        return importlib.metadata.version("mp_loop")
    except importlib.metadata.PackageNotFoundError:
        return None  # Runs from a checkout that was not installed.


def _git_commit() -> str | None:
    """The commit of a checkout of this package, "+changes" where it was edited."""

    def git(*words: str) -> str:
        here = pathlib.Path(__file__).parents[1]  # the package
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # Installed inside another project's checkout, we are not part of it.
        git("ls-files", "--error-unmatch", "__init__.py")
        commit = git("rev-parse", "HEAD")
        changes = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes else "")


def software() -> dict[str, json_values.Json]:
    """Returns versions: TensorFlow and what it was built for, drivers, libraries."""
    import keras
    import tensorflow as tf

    build = tf.sysconfig.get_build_info()
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
        "built_for_cuda": build.get("cuda_version"),
        "built_for_cudnn": build.get("cudnn_version"),
        "nvidia_driver": nvidia_driver(),
        "nvidia_libraries": {
            name: found.version
            for found in importlib.metadata.distributions()
            if (name := (found.metadata["Name"] or "").lower()).startswith("nvidia-")
        },
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1") != "0",
    }


def nvidia_driver() -> str | None:
    """Returns the version of NVIDIA's driver; None if there is no driver."""
    try:
        text = pathlib.Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        try:
            text = subprocess.run(
                ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return None
    found = re.search(r"\d+\.\d+(\.\d+)?", text)
    return found and found[0]
