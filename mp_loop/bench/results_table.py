"""The figures of a workload as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping

from mp_loop.bench import measure
from mp_loop.config import json_values
from mp_loop.rendering import tables

HEADER = (
    "arm",
    "batch",
    "ms/step",
    "examples/s",
    "time ratio (range)",
    "step memory, MiB",
    "ratio",
    "allocated, MiB",
    "ratio",
    "process memory, MiB",
    "ratio",
    "tracing, s",
    "until first step, s",
    "graph nodes",
)


def markdown(workload: str, results: Mapping[str, json_values.Object]) -> str:
    """Lays the figures of one workload out, and says why arms failed.

    Args:
      workload: its name, the title.
      results: what `measure.measure` returns.
    """
    rows = [list(HEADER), *(_cells(*item) for item in results.items())]
    why = [result["failed"] for result in results.values() if "failed" in result]
    lines = [f"### {workload}", "", *tables.markdown(rows)]
    return "\n".join([*lines, *(["", *why] if why else []), ""])


def _cells(name: str, result: json_values.Object) -> list[str]:
    if "failed" in result:
        return [name, "failed", *[""] * (len(HEADER) - 2)]
    ratio, trace = result["time_ratio"], result["trace_seconds"]
    return [
        name,
        str(result["batch_size"]),
        f"{result['milliseconds_per_step']:.4g}",
        f"{result['examples_per_second']:.4g}",
        f"{ratio['median']:.3f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
        f"{result['step_bytes'] / measure.MIB:.0f}",
        _ratio(result["step_bytes_ratio"]),
        _mib(result.get("allocated_bytes")),
        _ratio(result["allocated_bytes_ratio"]),
        f"{result['process_bytes'] / measure.MIB:.0f}",
        _ratio(result["process_bytes_ratio"]),
        "" if trace is None else f"{trace:.1f}",
        f"{result['until_first_step_seconds']:.1f}",
        str(result["graph_nodes"] or ""),
    ]


def _mib(value: int | None) -> str:
    return "" if value is None else f"{value / measure.MIB:.0f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
