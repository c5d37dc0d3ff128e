"""The report of several runs, one beside the other: report.html.

    runs_page.write("runs", ["runs/a", "runs/b"])

It reads the files of the run folders alone.
"""

from __future__ import annotations

import dataclasses
import html
import os
import pathlib
from collections.abc import Mapping, Sequence

from mp_loop.config import json_values
from mp_loop.rendering import numbers, tables
from mp_loop.report import page, recorded_runs, run_charts, sections
from mp_loop.run import records

# Flags that differ without making a difference to a reader.
_NOT_COMPARED = ("output_dir", "resume", "quiet")
# Heading, key in summary.json, format.
_COLUMNS = (
    ("loss", "eval_loss", "{:.4f}"),
    ("steps", "steps", "{:,}"),
    ("skipped", "skipped_steps", "{:,}"),
    ("training time", "train_seconds", ""),
    ("ms/step", "milliseconds_per_step", "{:.1f}"),
    ("memory, MiB", "peak_memory_bytes", "{:,.0f}"),
)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the folder of a run holds."""

    name: str
    folder: pathlib.Path
    flags: Mapping[str, str]
    summary: json_values.Object
    recorded: recorded_runs.RecordedRun
    damaged: Sequence[str]

    @classmethod
    def read(cls, name: str, folder: pathlib.Path) -> _Run:
        recorded = recorded_runs.RecordedRun.read(folder, name)
        summary, damaged = records.summary_and_damage(folder)
        damaged = [
            *recorded.damaged,
            *records.damage_text(records.SUMMARY_FILE, damaged),
        ]
        flags = sections.read_flags(folder)
        return cls(name, folder, flags, summary, recorded, damaged)


def write(
    output_dir: str | os.PathLike[str], folders: Sequence[str | os.PathLike[str]]
) -> str:
    """Writes the report of runs, finished or not; returns its path.

    Args:
      output_dir: where report.html is written.
      folders: of the runs.

    Raises:
      RecordError: the report cannot be written.
    """
    paths = [pathlib.Path(folder) for folder in folders]
    names = _names(paths)
    runs = [_Run.read(*pair) for pair in zip(names, paths, strict=True)]
    title = f"{len(runs)} runs"
    body = [
        sections.heading(title, ", ".join(sorted({_subject(run) for run in runs}))),
        *(
            sections.warning(f"{run.name}: {text}")
            for run in runs
            for text in run.damaged
        ),
        sections.table(_results(runs)),
        run_charts.curves([run.recorded for run in runs]),
        f"<h2>What differs</h2>{sections.table(_differences(runs))}",
        f"<h2>Reports</h2><p>{_links(runs, pathlib.Path(output_dir))}</p>",
    ]
    return page.write(output_dir, title, body)


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len({*names}) == len(names):
            break
    return names


def _subject(run: _Run) -> str:
    return f"{run.flags.get('model', 'model')} on {run.flags.get('dataset', 'data')}"


def _results(runs: Sequence[_Run]) -> tables.Rows:
    """A row for each run; where it has not finished, of its last lines."""
    key = recorded_runs.metric_key([run.recorded for run in runs])
    head = ["run", records.metric_title(key), *(name for name, _, _ in _COLUMNS)]
    return [head, *(_row(run, key) for run in runs)]


def _row(run: _Run, key: str) -> list[str]:
    values, note = dict(run.summary), ""
    if not values:
        for lines in (run.recorded.evaluations, run.recorded.metrics):
            values |= lines[-1] if lines else {}
        values["steps"] = values.get("step", 0)
        note = " (not finished)"
    cells = [run.name + note, _cell(values, key, "{:.4f}")]
    return cells + [_cell(values, name, form) for _, name, form in _COLUMNS]


def _cell(values: json_values.Object, name: str, form: str) -> str:
    value = values.get(name)
    if value is None:
        return "-"
    if not form:
        return numbers.duration(value)
    return form.format(value / 2**20 if name.endswith("_bytes") else value)


def _differences(runs: Sequence[_Run]) -> tables.Rows:
    """The flags that are not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.flags)
    rows = [["flag", *(run.name for run in runs)]]
    for name in names:
        values = [run.flags.get(name, "-") for run in runs]
        if len({*values}) > 1 and name.removeprefix("no") not in _NOT_COMPARED:
            rows.append([name, *values])
    return rows


def _links(runs: Sequence[_Run], output_dir: pathlib.Path) -> str:
    """Links to the reports of the runs that have one."""
    found = []
    for run in runs:
        path = run.folder / page.FILE
        if path.exists():
            to = html.escape(os.path.relpath(path, output_dir))
            found.append(f'<a href="{to}">{html.escape(run.name)}</a>')
    return ", ".join(found) or "none"
