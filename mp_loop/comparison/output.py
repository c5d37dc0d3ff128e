"""The files of a finished comparison: table, JSON, pictures and report.

    written = write(folder, design, planned_runs)
    print(written)              # the table, and where everything is

The files are written when the last run is finished, and again when runs were added.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from mp_loop.comparison import (
    comparison_table,
    designs,
    difference_plot,
    equivalence,
    measures,
    runs,
)
from mp_loop.rendering import figures
from mp_loop.report import comparison_page, recorded_runs, run_page, training_plot
from mp_loop.run import files, records, strict_json

TABLE_FILE = "comparison.md"
JSON_FILE = "comparison.json"
CURVES_FILE = "comparison.png"
DIFFERENCES_FILE = "equivalence.png"


@dataclasses.dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
      folder: of the comparison.
      table: the text of comparison.md.
      report: path of report.html.
      curves: path of the curves; None where matplotlib is missing.
      differences: path of the differences; None where there are none.
    """

    folder: pathlib.Path
    table: str
    report: str
    curves: pathlib.Path | None
    differences: pathlib.Path | None

    def __str__(self) -> str:
        """The table, and where everything is."""
        lines = [self.table, f"Table and runs: {self.folder}", f"Report: {self.report}"]
        if self.curves is None:
            lines.append(f"No picture: {figures.MISSING}")
        else:
            lines.append(f"Picture: {self.curves}")
        if self.differences is not None:
            lines.append(f"Differences: {self.differences}")
        return "\n".join(lines)


def write(
    folder: pathlib.Path, design: designs.Design, planned: Sequence[runs.PlannedRun]
) -> Written:
    """Writes table, pictures and report of runs that are all finished."""
    summaries = {
        arm.name: [
            records.read_summary(folder / run.name, measures.NEEDED)
            for run in planned
            if run.arm == arm
        ]
        for arm in design.arms
    }
    comparison = measures.compare(summaries, design.reference.name, design.margin)
    comparison["stages"] = [dataclasses.asdict(one) for one in design.revisions]
    table = comparison_table.markdown(comparison)
    files.write_atomically(folder / TABLE_FILE, table)
    files.write_atomically(folder / JSON_FILE, strict_json.to_document(comparison))
    recorded = {
        run.name: recorded_runs.RecordedRun.read(folder / run.name, run.arm.name)
        for run in planned
    }
    curves = folder / CURVES_FILE
    if not training_plot.draw(curves, list(recorded.values()), _title(design)):
        curves = None
    results = {
        name: equivalence.Equivalence(**arm["difference"])
        for name, arm in comparison["arms"].items()
        if "difference" in arm
    }
    differences = None
    if curves and results:
        differences = folder / DIFFERENCES_FILE
        metric = records.metric_title(comparison["metric"])
        difference_plot.draw(differences, results, comparison["reference"], metric)
    cells, note = comparison_table.cells(comparison)
    for name, run in recorded.items():  # now that Keras' runs are there to compare with
        run_page.write(folder / name, run=dataclasses.replace(run, label=""))
    report = comparison_page.write(folder, cells, recorded, note)
    return Written(folder, table, report, curves, differences)


def _title(design: designs.Design) -> str:
    config = design.config
    return f"{config.model.model} on {config.data.dataset}, {design.repeats} runs each"
