"""The files of a run folder by name, and how they are read back.

metrics.jsonl, evaluations.jsonl and numerics.jsonl hold one JSON object a line. What
is damaged is left out wherever it is read, and named.
"""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence

from mp_loop.config import errors, json_values
from mp_loop.run import files, json_lines, record_checks, strict_json

FLAGS_FILE = "flags.txt"
ENVIRONMENT_FILE = "environment.json"
COVERAGE_FILE = "coverage.json"
METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
NUMERICS_FILE = "numerics.jsonl"
SUMMARY_FILE = "summary.json"
TEST_RESULTS_FILE = "test_results.json"
MODEL_FILE = "model.keras"
PREDICTOR_FILE = "predictor.keras"
CLASSES_FILE = "classes.json"
DATA_FILE = "data.json"
COLUMNS_FILE = "columns.json"
TOKENIZER_FOLDER = "tokenizer"
CHECKPOINTS_FOLDER = "checkpoints"
TENSORBOARD_FOLDER = "tensorboard"

Folder = str | os.PathLike[str]

_MOST_NAMED = 3  # damaged lines in one warning

logger = logging.getLogger(__name__)


def metric_key(line: json_values.Object) -> str:
    """The key of the metric beside `eval_loss` in an evaluation or a summary."""
    keys = (key for key in line if key.startswith("eval_") and key != "eval_loss")
    return next(keys, "eval_accuracy")


def metric_title(key: str) -> str:
    """The name of a metric for people: "accuracy", "mean squared error", "AUC"."""
    name = training_key(key).replace("_", " ")
    return {"auc": "AUC", "mean iou": "mean IoU"}.get(name, name)


def training_key(key: str) -> str:
    """The key in a line of training of what evaluations call `key`."""
    return key.removeprefix("eval_")


def read(output_dir: Folder, name: str) -> json_lines.Read:
    """Reads one of the files of lines; what is damaged is left out, and named.

    Raises:
      RecordError: the file cannot be opened.
    """
    return json_lines.read(pathlib.Path(output_dir) / name, _DAMAGE[name])


def read_metrics(output_dir: Folder) -> list[dict[str, json_values.Json]]:
    """Reads the training metrics of a run, in order, before a resume included."""
    return _read_and_warn(output_dir, METRICS_FILE)


def read_evaluations(output_dir: Folder) -> list[dict[str, json_values.Json]]:
    """Reads the evaluations of a run, in order."""
    return _read_and_warn(output_dir, EVALUATIONS_FILE)


def read_numerics(output_dir: Folder) -> list[dict[str, json_values.Json]]:
    """Reads what the probes of a run saw, in order."""
    return _read_and_warn(output_dir, NUMERICS_FILE)


def summary_and_damage(
    output_dir: Folder,
) -> tuple[dict[str, json_values.Json], list[str]]:
    """Reads the summary of a run.

    Returns:
      The values that are not damaged, none where there is no summary; and what is
      damaged.
    """
    summary, damaged = _object_and_damage(output_dir, SUMMARY_FILE)
    if damaged:
        return {}, damaged
    checks = record_checks.SUMMARY | record_checks.evaluation_checks(summary)
    wrong = {
        name: record_checks.described(name, summary[name])
        for name, check in checks.items()
        if name in summary and not check(summary[name])
    }
    kept = {name: value for name, value in summary.items() if name not in wrong}
    return kept, list(wrong.values())


def test_results_and_damage(
    output_dir: Folder,
) -> tuple[dict[str, json_values.Json], list[str]]:
    """Reads what the final weights get right and wrong, whole or not at all.

    Returns:
      What test_results.json holds, nothing where it is damaged or there is none; and
      what is damaged.
    """
    found, damaged = _object_and_damage(output_dir, TEST_RESULTS_FILE)
    if found and (said := record_checks.test_results_damage(found)):
        return {}, [said]
    return found, damaged


def _object_and_damage(
    output_dir: Folder, name: str
) -> tuple[dict[str, json_values.Json], list[str]]:
    """Reads a file that holds one object; empty where there is no such file."""
    try:
        path = pathlib.Path(output_dir) / name
        found = strict_json.parse(files.read_regular(path)[0])
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError, RecursionError) as error:
        return {}, [errors.one_line(error)]
    return found, []


def read_summary(
    output_dir: Folder, needed: Collection[str] = ()
) -> dict[str, json_values.Json]:
    """Reads the summary of a finished run.

    Args:
      output_dir: the run folder.
      needed: names of values that it must have.

    Raises:
      RecordError: there is none, it is not a JSON object, or a value is damaged or
        missing.
    """
    path = pathlib.Path(output_dir) / SUMMARY_FILE
    summary, damaged = summary_and_damage(output_dir)
    if not path.exists():
        damaged = ["there is no such file"]
    damaged += [f"it has no {name}" for name in needed if name not in summary]
    if damaged:
        raise errors.RecordError(f"{path} is not the summary of a run: {damaged[0]}.")
    return summary


def damage_text(path: Folder, damaged: Sequence[str]) -> list[str]:
    """Says in one line what of a file is left out; no line where nothing is."""
    if not damaged:
        return []
    more = len(damaged) - _MOST_NAMED
    also = f"; and {more} more" if more > 0 else ""
    named = "; ".join(damaged[:_MOST_NAMED])
    return [f"{path} is damaged and partly left out: {named}{also}."]


def warn(path: Folder, damaged: Sequence[str]) -> None:
    """Logs what of a file is left out."""
    for text in damage_text(path, damaged):
        logger.warning("%s", text)


def _read_and_warn(output_dir: Folder, name: str) -> list[dict[str, json_values.Json]]:
    found = read(output_dir, name)
    warn(pathlib.Path(output_dir) / name, found.damaged)
    return found.lines


_DAMAGE: Mapping[str, Callable[[dict[str, json_values.Json]], str]] = {
    METRICS_FILE: lambda line: record_checks.damage(line, record_checks.METRICS),
    EVALUATIONS_FILE: lambda line: record_checks.damage(
        line, record_checks.evaluation_checks(line)
    ),
    NUMERICS_FILE: lambda line: record_checks.damage(line, record_checks.NUMERICS),
}
