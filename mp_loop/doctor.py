"""What this machine can do, and why: `python -m mp_loop.doctor`.

Lists the devices, what float16 and bfloat16 gain on each, a short measurement
(seconds) of a matrix product and a convolution in every type, versions of drivers
and libraries, and what --precision=auto chooses here. Nothing is written.

Exit codes: 0 done, 2 bad input.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from mp_loop.cli import app
from mp_loop.config import choices
from mp_loop.hardware import capability, processor, startup
from mp_loop.rendering import tables
from mp_loop.run import record

_GAINS = {"yes": "faster", "perhaps": "measure", "memory": "less memory", "no": "no"}
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "bf16")


def declare(flag_values: flags.FlagValues) -> None:
    """Declares the flags of this command."""
    flags.DEFINE_bool(
        "json", False, "Print JSON instead of tables.", flag_values=flag_values
    )


def run(_settings: Any, flag_values: Any) -> int:
    """Examines the machine and prints what it found; returns the exit code."""
    processor.prefer_onednn()
    with startup.quiet_start():
        from mp_loop.hardware import machine

        devices = machine.find()
    timings = machine.measure(devices)
    devices = machine.with_ratios(devices, timings)
    findings = {
        "devices": [_facts(device) for device in devices],
        "timings": {
            model: [dataclasses.asdict(timing) for timing in found]
            for model, found in timings.items()
        },
        "software": software(),
        "auto": dataclasses.asdict(capability.choose(devices)),
        "notes": notes(devices),
    }
    print(record.to_json(findings) if flag_values.json else report(findings))
    return 0


def _facts(device: capability.Device) -> dict[str, Any]:
    """A device and what each type gains on it."""
    instructions = device.instructions
    return {
        "name": device.name,
        "model": device.model,
        "cores": _cores() if device.kind == "CPU" else None,
        "compute_capability": device.compute_capability,
        "instructions": instructions
        and [name for name in _INSTRUCTIONS if name in instructions],
        "gains": {
            precision: dataclasses.asdict(capability.gains(device, precision))
            for precision in reversed(choices.HALF_PRECISIONS)
        },
    }


def _cores() -> int | None:
    """The processor cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count()


def software() -> dict[str, Any]:
    """Versions of TensorFlow, what it was built for, drivers and libraries."""
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
    """Returns the version of NVIDIA's driver, None where there is none."""
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


def notes(devices: Sequence[capability.Device]) -> list[str]:
    """What a user should know, each in one sentence."""
    import tensorflow as tf

    said = []
    gpus = [device for device in devices if device.kind == "GPU"]
    if not gpus and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        said.append("CUDA_VISIBLE_DEVICES hides every GPU.")
    elif not gpus and nvidia_driver():
        said.append(
            "An NVIDIA driver is installed, but TensorFlow finds no GPU: its CUDA "
            "libraries may be missing (pip install 'mp_loop[gpu]')."
        )
    if len({device.model for device in gpus}) > 1:
        said.append("The GPUs differ: the weakest decides for all of them.")
    if any((gpu.compute_capability or (0, 0)) >= (8, 0) for gpu in gpus):
        on = tf.config.experimental.tensor_float_32_execution_enabled()
        said.append(
            f"TF32 is {'on' if on else 'off'}: float32 products "
            f"{'round their inputs to 10 bits of mantissa' if on else 'are exact'}."
        )
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0" and not gpus:
        said.append("TF_ENABLE_ONEDNN_OPTS=0 turns the fast processor kernels off.")
    return said


def report(findings: Mapping[str, Any]) -> str:
    """Lays the findings out for the terminal."""
    lines = ["devices", ""]
    for device in findings["devices"]:
        facts = [device["model"]]
        if device["cores"]:
            facts.append(f"{device['cores']} cores")
        if device["compute_capability"]:
            number = ".".join(map(str, device["compute_capability"]))
            facts.append(f"compute capability {number}")
        if device["instructions"]:
            facts.append(" ".join(device["instructions"]))
        said = f"  {device['name']}  {', '.join(facts)}"
        lines += textwrap.wrap(said, 80, subsequent_indent=" " * 9)
        for precision, gain in device["gains"].items():
            said = f"{_GAINS[gain['gain']]}: {gain['reason']}"
            lines += textwrap.wrap(f"    {precision:<8}  {said}", 80, **_INDENT)
    for model, timings in findings["timings"].items():
        lines += ["", f"measured on {model}, forward and backward"]
        for timing in timings:
            lines += ["", f"  {timing['product']}"]
            wide = timing["seconds"]["float32"]
            rows = [
                (
                    precision,
                    f"{seconds * 1e3:8.2f} ms",
                    f"{timing['flops'] / seconds / 1e9:9.0f} GFLOP/s",
                    f"{seconds / wide:6.2f} of float32",
                )
                for precision, seconds in timing["seconds"].items()
            ]
            lines += tables.columns(rows, indent="    ")
    rows = []
    for name, value in findings["software"].items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in sorted(value.items()))
        if isinstance(value, bool):
            value = "on" if value else "off"
        rows.append((name.replace("_", " "), value or "none"))
    lines += ["", "software", "", *tables.columns(rows, left=True, indent="  ")]
    if findings["notes"]:
        lines += ["", "notes", "", *(f"  {note}" for note in findings["notes"])]
    auto = findings["auto"]
    chosen = f"--precision=auto chooses {auto['precision']}: {auto['reason']}."
    return "\n".join([*lines, "", *textwrap.wrap(chosen, 80)])


_INDENT = {"subsequent_indent": " " * 14}


if __name__ == "__main__":
    app.main(run, declare, of_experiment=False)
