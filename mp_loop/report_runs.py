"""Compares runs on one page: `python -m mp_loop.report RUN...`.

    python -m mp_loop.report runs/*

Writes report.html: a table of results, the curves of all runs, the flags in which they
differ, and links to their own reports. A RUN is a run folder, finished or not; what is
no run folder is left out, with a line that says so. One RUN gets its own report again.
Exit codes: 0 done, 2 bad input, 3 the page could not be written.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from mp_loop.cli import app, outcomes
from mp_loop.config import errors, settings
from mp_loop.report import page, run_page, runs_page
from mp_loop.run import records


def declare(flag_values: flags.FlagValues) -> None:
    """Declares the flags of this command."""
    text = f"Folder of {page.FILE}; default: the one that holds the runs."
    flags.DEFINE_string("output_dir", "", text, flag_values=flag_values)
    flags.DEFINE_list("runs", [], "The run folders.", flag_values=flag_values)


def run(_config: settings.Config, flag_values: flags.FlagValues) -> int:
    """Writes the page; returns the exit code."""
    runs = _run_folders(flag_values.runs)
    output_dir = flag_values.output_dir
    try:
        if len(runs) == 1 and not output_dir:
            path = run_page.write(runs[0])
        else:
            path = runs_page.write(output_dir or _common(runs), runs)
    except errors.RecordError as error:
        return outcomes.Outcome(outcomes.NOT_WRITABLE, str(error)).tell()
    print(f"Report: {path}")
    return outcomes.DONE


def _run_folders(words: Sequence[str]) -> list[str]:
    """The run folders among the arguments."""
    runs = []
    for word in dict.fromkeys(os.path.normpath(word) for word in words):
        if (pathlib.Path(word) / records.FLAGS_FILE).is_file():
            runs.append(word)
        else:
            print(f"{word} is no run folder: left out.", file=sys.stderr)
    if not runs:
        raise errors.UsageError("RUN... must name at least one run folder.")
    return runs


def _common(runs: Sequence[str]) -> str:
    """The folder that holds all runs; a run's own folder is not taken for it."""
    parent = os.path.commonpath([os.path.dirname(os.path.abspath(x)) for x in runs])
    if (pathlib.Path(parent) / records.FLAGS_FILE).is_file():
        raise errors.UsageError(
            f"--output_dir must be given: '{parent}' is a run folder, with a "
            f"{page.FILE} of its own."
        )
    return parent


def main() -> None:
    """Runs the command."""
    app.main(run, declare, of_experiment=False, words="runs")


if __name__ == "__main__":
    main()
