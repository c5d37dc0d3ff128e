"""The report of a comparison: report.html."""

from __future__ import annotations

import html
import os
import pathlib
from collections.abc import Mapping, Sequence

from mp_loop.rendering import tables
from mp_loop.report import page, recorded_runs, run_charts, sections


def write(
    output_dir: str | os.PathLike[str],
    rows: tables.Rows,
    runs: Mapping[str, str],
    note: str = "",
) -> str:
    """Writes the report of a comparison; returns its path.

    Args:
      output_dir: the folder of the comparison.
      rows: the table, its head first.
      runs: for the name of each run's folder its arm, in order.
      note: about the table.

    Raises:
      RecordError: a file of a run is damaged, or the report cannot be written.
    """
    folder = pathlib.Path(output_dir)
    recorded = [
        recorded_runs.RecordedRun.read(folder / name, arm) for name, arm in runs.items()
    ]
    first = folder / next(iter(runs))
    flags = sections.read_flags(first)
    title = f"Comparison: {flags.get('model')} on {flags.get('dataset')}"
    common = {k: v for k, v in flags.items() if k not in ("precision", "loop")}
    body = [
        sections.heading(title),
        sections.table(rows),
        sections.paragraph(note),
        run_charts.curves(recorded),
        f"<h2>Runs</h2><p>{_links(list(runs))}</p>",
        sections.configuration(common),
        sections.environment(first),
    ]
    return page.write(folder, title, body)


def _links(names: Sequence[str]) -> str:
    """Links to the reports of runs."""
    escaped = map(html.escape, names)
    return ", ".join(f'<a href="{name}/{page.FILE}">{name}</a>' for name in escaped)
