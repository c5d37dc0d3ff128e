"""What a run has recorded, as pictures and pages show it.

    run = RecordedRun.read("runs/a", label="custom:float16")
    skips(run.metrics)              # the lines before which steps were skipped

It is read from the files of the run folder.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from mp_loop.config import errors, json_values
from mp_loop.rendering import numbers
from mp_loop.run import json_lines, records

Lines = Sequence[json_values.Object]


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """The recorded lines of one run.

    Attributes:
      label: runs that share a label share a colour and one entry of the legend; a
        single run without a label needs no legend.
      metrics: of metrics.jsonl.
      evaluations: of evaluations.jsonl.
      numerics: of numerics.jsonl.
      damaged: what could not be read and was left out, a line for each file.
    """

    label: str
    metrics: Lines
    evaluations: Lines
    numerics: Lines = ()
    damaged: Sequence[str] = ()

    @classmethod
    def read(cls, output_dir: str | os.PathLike[str], label: str = "") -> RecordedRun:
        """Reads the run in a folder; what is damaged is named and left out."""
        lines: list[Lines] = []
        damaged: list[str] = []
        for name in (
            records.METRICS_FILE,
            records.EVALUATIONS_FILE,
            records.NUMERICS_FILE,
        ):
            try:
                found = records.read(output_dir, name)
            except errors.RecordError as error:
                found = json_lines.Read([], [str(error)])
            lines.append(found.lines)
            damaged += records.damage_text(name, found.damaged)
        return cls(label, *lines, damaged)

    @property
    def looks(self) -> Lines:
        """The lines of numerics that show the layers of the first one."""
        looks = [look for look in self.numerics if look.get("layers")]
        names = [layer["name"] for layer in looks[0]["layers"]] if looks else []
        return [
            look
            for look in looks
            if [layer["name"] for layer in look["layers"]] == names
        ]


def metric_key(runs: Sequence[RecordedRun]) -> str:
    """The key of the metric in the evaluations of runs."""
    lines = [line for run in runs for line in run.evaluations]
    return records.metric_key(lines[0] if lines else {})


@dataclasses.dataclass(frozen=True)
class Skips:
    """Steps that were skipped between a logged line and the one before.

    Attributes:
      step: of the line.
      count: how many were skipped.
      loss_scale: of the line.
      line: all of it.
    """

    step: int
    count: int
    loss_scale: float
    line: json_values.Object


def skips(metrics: Lines) -> list[Skips]:
    """Where steps were skipped, in order."""
    found, before = [], 0
    for line in metrics:
        count = line.get("skipped_steps", before) - before
        if count > 0:
            scale = numbers.or_nan(line.get("loss_scale"))
            found.append(Skips(line["step"], count, scale, line))
        before += max(count, 0)
    return found


def column(lines: Lines, name: str) -> list[float]:
    """One value of every line; NaN, a gap in a curve, where a line has none."""
    return [numbers.or_nan(line.get(name)) for line in lines]
