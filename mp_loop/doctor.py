"""What this machine can do, and why: `python -m mp_loop.doctor`.

Lists the devices, what float16 and bfloat16 gain on each, a short measurement
(seconds) of a matrix product and a convolution in every type, versions of drivers
and libraries, why TensorFlow sees no GPU where it sees none, and what
--precision=auto chooses here. Nothing is written.

Exit codes: 0 done, 2 bad input.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from absl import flags

from mp_loop.cli import app
from mp_loop.config import json_values, settings
from mp_loop.hardware import startup
from mp_loop.rendering import tables
from mp_loop.run import strict_json

_GAINS = {"yes": "faster", "perhaps": "measure", "memory": "less memory", "no": "no"}


def declare(flag_values: flags.FlagValues) -> None:
    """Declares the flags of this command."""
    flags.DEFINE_bool(
        "json", False, "Print JSON instead of tables.", flag_values=flag_values
    )


def run(_config: settings.Config, flag_values: flags.FlagValues) -> int:
    """Examines the machine and prints what it found; returns the exit code."""
    startup.start_tensorflow()
    from mp_loop.hardware import machine

    findings = machine.examine()
    print(strict_json.to_document(findings) if flag_values.json else report(findings))
    return 0


def report(findings: json_values.Object) -> str:
    """Lays the findings out for the terminal."""
    lines = ["devices", ""]
    for device in findings["devices"]:
        facts = [device["model"]]
        if device["cores"]:
            facts.append(f"{device['cores']} cores")
        if device["compute_capability"]:
            number = ".".join(map(str, device["compute_capability"]))
            facts.append(f"compute capability {number}")
        if device["memory_bytes"]:
            facts.append(f"{device['memory_bytes'] / 2**30:.1f} GiB")
        if device["tensor_cores"] is not None:
            types = ", ".join(device["tensor_cores"])
            facts.append(f"tensor cores for {types}" if types else "no tensor cores")
        if device["instructions"]:
            facts.append(" ".join(device["instructions"]))
        said = f"  {device['name']}  {', '.join(facts)}"
        lines += textwrap.wrap(said, 80, subsequent_indent=" " * 9)
        for precision, gain in device["gains"].items():
            said = f"{_GAINS[gain['gain']]}: {gain['reason']}"
            lines += textwrap.wrap(
                f"    {precision:<8}  {said}", 80, subsequent_indent=" " * 14
            )
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
    for heading, key in (("why TensorFlow sees no GPU", "no_gpu"), ("notes", "notes")):
        if findings[key]:
            lines += ["", heading, ""]
        for sentence in findings[key]:
            indents = {"initial_indent": "  ", "subsequent_indent": "    "}
            lines += textwrap.wrap(sentence, 80, **indents, break_on_hyphens=False)
    auto = findings["auto"]
    chosen = f"--precision=auto chooses {auto['precision']}: {auto['reason']}."
    return "\n".join([*lines, "", *textwrap.wrap(chosen, 80)])


if __name__ == "__main__":
    app.main(run, declare, of_experiment=False)
