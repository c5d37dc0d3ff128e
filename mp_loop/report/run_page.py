"""The report of a run: report.html.

    run_page.write("runs/a")                   # after the files of the run

It reads the files of the run folder alone, and of those beside it whether one is of
Keras' loop with the same settings.
"""

from __future__ import annotations

import os
import pathlib

from mp_loop.report import (
    keras_baseline,
    page,
    recorded_runs,
    run_charts,
    sections,
    test_results,
)
from mp_loop.run import input_hint, records


def write(
    output_dir: str | os.PathLike[str],
    note: str = "",
    run: recorded_runs.RecordedRun | None = None,
) -> str:
    """Writes the report of a run, finished or not; returns its path.

    It is made from the files of the run folder, and shows numerics.jsonl where that
    exists.

    Args:
      output_dir: the run folder.
      note: what is to be said first, such as why the run stopped.
      run: what the folder holds, if it was read before.

    Raises:
      RecordError: the report cannot be written.
    """
    folder = pathlib.Path(output_dir)
    flags = sections.read_flags(folder)
    run = run or recorded_runs.RecordedRun.read(folder)
    summary, damaged = records.summary_and_damage(folder)
    damaged = [*run.damaged, *records.damage_text(records.SUMMARY_FILE, damaged)]
    found, wrong = records.test_results_and_damage(folder)
    damaged += records.damage_text(records.TEST_RESULTS_FILE, wrong)
    if not (folder / records.SUMMARY_FILE).exists():
        last = run.metrics[-1]["step"] if run.metrics else 0
        note = note or f"This run has not finished: its last line is of step {last}."
    title = f"{flags.get('model', 'model')} on {flags.get('dataset', 'data')}"
    subtitle = f"{flags.get('precision', '')}, {flags.get('loop', '')} loop"
    body = [
        sections.heading(title, subtitle),
        sections.warning(note),
        *map(sections.warning, damaged),
        sections.answer(summary),
        keras_baseline.paragraph(folder, summary),
        sections.tiles(summary),
        test_results.section(found),
        "<h2>Training</h2>",
        sections.paragraph(input_hint.text(run.metrics)),
        run_charts.curves([run]),
        sections.skipped_steps(run.metrics),
        run_charts.numerics(run.looks),
        sections.coverage(folder),
        sections.configuration(flags),
        sections.environment(folder),
    ]
    return page.write(folder, title, body)
