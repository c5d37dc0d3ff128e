"""The files of a run folder by name, and how they are read back.

metrics.jsonl, evaluations.jsonl and numerics.jsonl hold one JSON object a line;
see `json_lines.read` for what happens to damaged lines.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from mp_loop.config import errors
from mp_loop.run import json_lines, strict_json

FLAGS_FILE = "flags.txt"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
NUMERICS_FILE = "numerics.jsonl"
SUMMARY_FILE = "summary.json"
MODEL_FILE = "model.keras"
CHECKPOINTS_FOLDER = "checkpoints"
TENSORBOARD_FOLDER = "tensorboard"

Folder = str | os.PathLike[str]


def metric_key(line: Mapping[str, Any]) -> str:
    """The key of the metric beside `eval_loss` in an evaluation or a summary."""
    keys = (key for key in line if key.startswith("eval_") and key != "eval_loss")
    return next(keys, "eval_accuracy")


def metric_title(key: str) -> str:
    """The name of a metric for people: "accuracy", "mean squared error"."""
    return key.removeprefix("eval_").replace("_", " ")


def read_metrics(
    output_dir: Folder, skip_damaged: bool = False
) -> list[dict[str, Any]]:
    """Reads the training metrics of a run, in order, before a resume included."""
    return json_lines.read(pathlib.Path(output_dir) / METRICS_FILE, skip_damaged)


def read_evaluations(
    output_dir: Folder, skip_damaged: bool = False
) -> list[dict[str, Any]]:
    """Reads the evaluations of a run, in order."""
    return json_lines.read(pathlib.Path(output_dir) / EVALUATIONS_FILE, skip_damaged)


def read_numerics(
    output_dir: Folder, skip_damaged: bool = False
) -> list[dict[str, Any]]:
    """Reads what the probes of a run saw, in order."""
    return json_lines.read(pathlib.Path(output_dir) / NUMERICS_FILE, skip_damaged)


def read_summary(output_dir: Folder) -> dict[str, Any]:
    """Reads the summary of a finished run.

    Raises:
      RecordError: there is none, or it is not a JSON object.
    """
    path = pathlib.Path(output_dir) / SUMMARY_FILE
    try:
        summary = strict_json.parse(path.read_text(encoding="utf-8"))
        if not isinstance(summary, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise errors.RecordError(
            f"{path} is not the summary of a run: {error}."
        ) from error
    return summary
