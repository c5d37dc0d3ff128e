"""The record of a visit: what was measured, and by name what was not.

Nothing is estimated. Hardware is what the stage `machine` found.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.gpu import plan
from mp_loop.rendering import tables
from mp_loop.run import records

STDOUT, LOG = "stdout.txt", "log.txt"
_MIB = 2.0**20
_REFERENCE = "keras:float32"

# Of `pytest -v`, with and without processes: "PASSED tests/a_test.py::test_b[c d]".
_OUTCOME = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b")
_TEST = re.compile(
    r"(tests/\S+\.py::.+?)(?: (?:PASSED|FAILED|ERROR|SKIPPED)\b.*| - .*)?$"
)

Found = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Result:
    """A stage, what came of it, what it took in seconds, and where its files are."""

    stage: plan.Stage
    said: str
    seconds: float
    folder: pathlib.Path

    def found(self) -> Any:
        """Returns what the stage measured, as JSON; None if it did not get so far."""
        readers = {
            "machine": _machine,
            "command": _runs,
            "tests": _tests,
            "benchmark": _benchmark,
            "comparison": _runs,
        }
        return readers[self.stage.kind](self.folder) if self.folder.exists() else None


def as_json(results: Sequence[Result], command: str) -> dict[str, Any]:
    """Returns the whole visit."""
    return {
        "command": command,
        "stages": {
            result.stage.name: {
                "outcome": result.said,
                "seconds": result.seconds,
                "command": ["python", "-m", *result.stage.words],
                "found": result.found(),
            }
            for result in results
        },
    }


def text(results: Sequence[Result], command: str) -> str:
    """Returns the record as Markdown."""
    found = {result.stage.name: result.found() for result in results}
    parts = [
        "# One visit to a GPU",
        hardware(found.get("machine")),
        f"    {command}",
        "## Stages",
        _table(
            ("stage", "outcome", "seconds"),
            [(r.stage.name, r.said, f"{r.seconds:.0f}") for r in results],
        ),
    ]
    for result in results:
        part = _part(result, found[result.stage.name])
        if part:
            parts += [f"## {result.stage.name}", part]
    benchmarks = {
        r.stage.name: found[r.stage.name]
        for r in results
        if r.stage.kind == "benchmark" and found[r.stage.name]
    }
    parts += ["## Goals", goals(benchmarks)]
    return "\n\n".join(parts) + "\n"


def hardware(machine: Found | None) -> str:
    """Names the hardware and software that were found."""
    if not machine:
        return "**The machine was not examined.**"
    gpus, others = [], []
    for device in machine["devices"]:
        (gpus if device["name"].startswith("GPU") else others).append(device)
    named = []
    for device in [*gpus, *others]:
        facts = [device["model"]]
        if device["memory_bytes"]:
            facts.append(f"{device['memory_bytes'] / 2**30:.1f} GiB")
        if device["compute_capability"]:
            number = ".".join(map(str, device["compute_capability"]))
            facts.append(f"compute capability {number}")
        if device["cores"]:
            facts.append(f"{device['cores']} cores")
        named.append(f"{device['name']}: {', '.join(facts)}")
    software = machine["software"]
    keys = ("tensorflow", "keras", "python", "built_for_cuda", "nvidia_driver")
    versions = [f"{k.replace('_', ' ')} {software[k]}" for k in keys if software[k]]
    said = f"{'; '.join(named)}. {', '.join(versions)}."
    if gpus:
        return said
    why = " ".join(machine["no_gpu"])
    return f"**No GPU: these figures are of a processor.** {why}\n\n{said}"


def goals(benchmarks: Mapping[str, Found]) -> str:
    """Returns the ratios that are wanted beside those that were measured."""
    rows = []
    for goal in plan.GOALS:
        arms = benchmarks.get(goal.workload, {})
        ours, theirs = (arms.get(name, {}) for name in (goal.arm, goal.against))
        measured = "blocks" in ours and "blocks" in theirs
        time = memory = "not measured"
        if measured:
            time = f"{_ratio(ours, theirs, 'milliseconds_per_step'):.2f}"
            memory = f"{_ratio(ours, theirs, 'step_bytes'):.2f}"
        wanted = "" if goal.time is None else f"<= {goal.time:.2f}"
        limit = f"<= {goal.memory:.2f}"
        rows.append(
            (goal.workload, goal.arm, goal.against, wanted, time, limit, memory)
        )
    header = ("workload", "arm", "against", "time", "measured", "memory", "measured")
    return _table(header, rows)


def _ratio(ours: Found, theirs: Found, name: str) -> float:
    return ours[name] / theirs[name] if theirs[name] else float("nan")


def _part(result: Result, found: Any) -> str:
    """The results of a stage as Markdown; empty if there are none."""
    if not found:
        return ""
    if result.stage.kind == "benchmark":
        table = (result.folder / "results" / "benchmark.md").read_text()
        table = table.partition("\n\n")[2].rstrip()  # under the stage's own heading
        return table + _pictures(result.folder)
    if result.stage.kind == "tests":
        return _of_tests(found)
    if result.stage.kind in ("command", "comparison"):
        return _of_runs(found, result.stage.name) + _pictures(result.folder)
    return ""


def _of_tests(found: Found) -> str:
    counts = ", ".join(f"{n} {name}" for name, n in found["counts"].items())
    failed = "".join(f"\n- `{name}`" for name in found["failed"])
    return f"{counts}.{failed}"


def _of_runs(runs: Mapping[str, Found], stage: str) -> str:
    """A row for each arm; the time to the accuracy that Keras float32 ends at."""
    margin, reference = plan.MARGINS.get(stage, 0.0), runs.get(_REFERENCE)
    header = ["arm", "metric", "ms/step", "training, s", "GPU memory, MiB"]
    header += ["process memory, MiB"]
    if reference:
        goal = _arrived(reference, reference["metric"], margin)
        header.append(f"training until {reference['metric_name']} {goal:.4f}, s")
    rows = []
    for arm, run in runs.items():
        gpu = run["peak_gpu_memory_bytes"]
        row = [arm, f"{run['metric_name']} {run['metric']:.4f}"]
        row += [f"{run['milliseconds_per_step']:.2f}", f"{run['train_seconds']:.1f}"]
        row += ["-" if gpu is None else f"{gpu / _MIB:.0f}"]
        row += [f"{run['peak_memory_bytes'] / _MIB:.0f}"]
        if reference:
            reached = [
                line["seconds"]
                for line in run["evaluations"]
                if _better(run) * (line["metric"] - goal) >= 0
            ]
            row.append(f"{reached[0]:.1f}" if reached else "not reached")
        rows.append(row)
    return _table(header, rows)


def _better(run: Found) -> int:
    """1 if more of the metric is better, else -1."""
    return -1 if run["metric_name"] == "perplexity" else 1


def _arrived(run: Found, final: float, margin: float) -> float:
    return final - _better(run) * margin


def _pictures(folder: pathlib.Path) -> str:
    paths = sorted(folder.rglob("*.png"))
    names = [path.relative_to(folder.parent).as_posix() for path in paths]
    return "".join(f"\n\n![{name}]({name})" for name in names)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(tables.markdown([list(header), *map(list, rows)]))


def _machine(folder: pathlib.Path) -> Found | None:
    return _json(folder / STDOUT)


def _benchmark(folder: pathlib.Path) -> Found | None:
    """The figures of each arm, from the one workload of the stage."""
    whole = _json(folder / "results" / "benchmark.json")
    return whole and next(iter(whole["workloads"].values()), None)


def _tests(folder: pathlib.Path) -> Found | None:
    """Counts, and the names of what failed; of a run that was cut, as far as it got."""
    outcomes = {}
    for line in (folder / STDOUT).read_text().splitlines():
        outcome, name = _OUTCOME.search(line), _TEST.search(line)
        if outcome and name:
            outcomes[name[1]] = outcome[0].lower()
    failed = [name for name, said in outcomes.items() if said in ("failed", "error")]
    counts = collections.Counter(outcomes.values())
    return {"counts": dict(counts), "failed": failed} if outcomes else None


def _runs(folder: pathlib.Path) -> dict[str, Found] | None:
    """What each finished run of a folder measured, by loop and precision."""
    found = {}
    for path in sorted(folder.rglob(records.SUMMARY_FILE)):
        summary = _json(path) or {}
        key = records.metric_key(summary)
        name = records.training_key(key)
        found[f"{summary['loop']}:{summary['precision']}"] = {
            "metric_name": name,
            "metric": summary[key],
            "milliseconds_per_step": summary["milliseconds_per_step"],
            "train_seconds": summary["train_seconds"],
            "peak_memory_bytes": summary["peak_memory_bytes"],
            "peak_gpu_memory_bytes": summary.get("peak_gpu_memory_bytes"),
            "skipped_steps": summary["skipped_steps"],
            "evaluations": _evaluations(path.parent, key, _batch(summary)),
        }
    return found or None


def _batch(summary: Found) -> float:
    return summary["examples_per_second"] * summary["milliseconds_per_step"] / 1e3


def _evaluations(
    folder: pathlib.Path, key: str, batch: float
) -> list[dict[str, float]]:
    """Each evaluation with the seconds of training before it, compiling included."""
    lines = records.read(folder, records.METRICS_FILE).lines
    evaluations = []
    for line in records.read(folder, records.EVALUATIONS_FILE).lines:
        seconds, last = 0.0, 0
        for window in lines:
            if window["step"] <= line["step"]:
                steps = window["step"] - last
                seconds += steps * batch / window["examples_per_second"]
                last = window["step"]
        evaluations.append(
            {"step": line["step"], "seconds": seconds, "metric": line[key]}
        )
    return evaluations


def _json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
