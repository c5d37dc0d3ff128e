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
    runs: Mapping[str, recorded_runs.RecordedRun],
    note: str = "",
) -> str:
    """Writes the report of a comparison; returns its path.

    Args:
      output_dir: the folder of the comparison.
      rows: the table, its head first.
      runs: for the name of each run's folder what it holds, in order; its label is
        the arm.
      note: about the table.

    Raises:
      RecordError: the report cannot be written.
    """
    folder = pathlib.Path(output_dir)
    first = folder / next(iter(runs))
    flags = sections.read_flags(first)
    title = f"Comparison: {flags.get('model')} on {flags.get('dataset')}"
    common = {k: v for k, v in flags.items() if k not in ("precision", "loop")}
    body = [
        sections.heading(title),
        sections.table(rows),
        sections.paragraph(note),
        *(
            sections.warning(f"{name}: {text}")
            for name, run in runs.items()
            for text in run.damaged
        ),
        run_charts.curves(list(runs.values())),
        f"<h2>Runs</h2><p>{_links(list(runs))}</p>",
        sections.configuration(common),
        sections.environment(first),
    ]
    return page.write(folder, title, body)


def _links(names: Sequence[str]) -> str:
    """Links to the reports of runs."""
    escaped = map(html.escape, names)
    return ", ".join(f'<a href="{name}/{page.FILE}">{name}</a>' for name in escaped)
