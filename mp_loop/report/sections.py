"""Sections of a report that are text and tables, in HTML.

What there is nothing to show of is an empty string.
"""

from __future__ import annotations

import html
import json
import pathlib
from collections.abc import Mapping

from mp_loop.config import json_values, settings
from mp_loop.rendering import numbers, tables
from mp_loop.report import recorded_runs
from mp_loop.run import files, records

_MOST_SKIPS = 30  # rows of the table
_MOST_NAMES = 3  # of variables whose gradients overflowed

# Label, key in summary.json, what shows it.
_TILES = (
    ("loss", "eval_loss", numbers.metric),
    ("steps", "steps", "{:,}".format),
    ("skipped", "skipped_steps", "{:,}".format),
    ("loss scale", "final_loss_scale", numbers.power_of_two),
    ("ms/step", "milliseconds_per_step", "{:.1f}".format),
    ("examples/s", "examples_per_second", "{:,.0f}".format),
    ("peak memory, MiB", "peak_memory_bytes", "{:,.0f}".format),
)


def heading(title: str, subtitle: str = "") -> str:
    """The title of the page, with a line below it."""
    below = f"<p>{html.escape(subtitle)}</p>" if subtitle else ""
    return f"<h1>{html.escape(title)}</h1>{below}"


def warning(text: str) -> str:
    """A note that stands out."""
    return f'<p class="note">{html.escape(text)}</p>' if text else ""


def paragraph(text: str) -> str:
    """A note below a table."""
    return f"<p>{html.escape(text)}</p>" if text else ""


def table(rows: tables.Rows, head: bool = True) -> str:
    """A table that scrolls where it is too wide."""
    return f'<div class="wide">{tables.html(rows, head)}</div>'


def answer(summary: json_values.Object) -> str:
    """What a colleague asks first: did it work, against what, how long, how large."""
    key = records.metric_key(summary)
    if summary.get(key) is None:
        return ""
    title = records.metric_title(key)
    said = f"{title[0].upper()}{title[1:]} {numbers.metric(summary[key])}"
    said += _baseline(summary, key)
    if summary.get("steps") is not None:
        steps = summary["steps"]
        said += f" after {steps:,} step{'s' * (steps != 1)}"
    if summary.get("train_seconds"):
        said += f" in {numbers.duration(summary['train_seconds'])}"
    if summary.get("peak_memory_bytes") is not None:
        said += f", with {summary['peak_memory_bytes'] / 2**20:,.0f} MiB of memory"
    if summary.get("best_step") is not None:
        said += f"; the best weights, of step {summary['best_step']:,}"
    return paragraph(f"{said}.")


def _baseline(summary: json_values.Object, key: str) -> str:
    """What always the same answer gives, in brackets; "" where that is not known."""
    chance = summary.get(f"majority_{records.training_key(key)}")
    if chance is not None:
        return f" (always the commonest class: {chance:.4f})"
    if key == "eval_auc":
        return " (by chance: 0.5)"
    mean, median = summary.get("mean_baseline"), summary.get("median_baseline")
    if mean is None or median is None:
        return ""
    return (
        f" (always the mean of the training targets: {numbers.metric(mean)}; their "
        f"median: {numbers.metric(median)})"
    )


def tiles(summary: json_values.Object) -> str:
    """The results that one looks for first."""
    key = records.metric_key(summary)
    found = []
    first = (records.metric_title(key), key, numbers.metric)
    for label, name, show in (first, *_TILES):
        if summary.get(name) is not None:
            value = summary[name] / 2**20 if name.endswith("_bytes") else summary[name]
            found.append(f"<div><b>{show(value)}</b>{html.escape(label)}</div>")
    return f'<div class="tiles">{"".join(found)}</div>' if found else ""


def skipped_steps(metrics: recorded_runs.Lines) -> str:
    """Which steps were skipped, and which gradients overflowed where that is known."""
    skips = recorded_runs.skips(metrics)
    if not skips:
        return ""
    rows = [("until step", "skipped", "loss scale", "overflowed in")]
    for skip in skips[:_MOST_SKIPS]:
        scale = numbers.power_of_two(skip.loss_scale)
        rows.append((f"{skip.step}", f"{skip.count}", scale, _overflowed(skip.line)))
    more = len(skips) - _MOST_SKIPS
    tail = f"<p>And {more} more lines with skips.</p>" if more > 0 else ""
    return f"<h2>Skipped steps</h2>{table(rows)}{tail}"


def _overflowed(line: json_values.Object) -> str:
    counts = line.get("overflowed") or {}
    names = sorted(counts, key=counts.get, reverse=True)
    who = ", ".join(names[:_MOST_NAMES])
    if len(names) > _MOST_NAMES:
        who += f" and {len(names) - _MOST_NAMES} more"
    began = (line.get("overflow") or {}).get("text", "")
    return "; ".join(filter(None, (who, began))) or "-"


def configuration(flags: Mapping[str, str]) -> str:
    """The flags of a run; those that are not the defaults stand out."""
    defaults = _flags(settings.Config().to_flagfile())
    rows = list(flags.items())
    changed = {i for i, (name, value) in enumerate(rows) if defaults.get(name) != value}
    return (
        "<h2>Configuration</h2><details><summary>All flags; in bold what is not the "
        f"default</summary>{tables.html(rows, False, changed)}</details>"
    )


def run_title(flags: Mapping[str, str]) -> str:
    """What was trained, and how: "cnn on mnist, float16, custom loop"."""
    parts = [f"{flags.get('model', 'model')} on {flags.get('dataset', 'data')}"]
    if "precision" in flags:
        parts.append(flags["precision"])
    if "loop" in flags:
        parts.append(f"{flags['loop']} loop")
    return ", ".join(parts)


def read_flags(folder: pathlib.Path) -> dict[str, str]:
    """The flags of the run in a folder, by name; empty where there are none."""
    try:
        text, _ = files.read_regular(folder / records.FLAGS_FILE)
        return _flags(text.decode("utf-8", errors="replace"))
    except OSError:
        return {}


def _flags(flagfile: str) -> dict[str, str]:
    lines = [line for line in flagfile.splitlines() if line.startswith("--")]
    return dict(line.removeprefix("--").partition("=")[::2] for line in lines)


def coverage(folder: pathlib.Path) -> str:
    """How much of the model multiplied in 16 bits, by layer."""
    found = _document(folder / records.COVERAGE_FILE)
    text, rows = found.get("text"), found.get("layers")
    if not isinstance(text, str) or not isinstance(rows, list):
        return ""
    rows = [[str(cell) for cell in row] for row in rows if isinstance(row, list)]
    head = f"<h2>16 bits</h2>{paragraph(text)}"
    known = len(rows) > 1 and len({len(row) for row in rows}) == 1
    return f"{head}{table(rows)}" if known else head


def environment(folder: pathlib.Path) -> str:
    """What the run in a folder ran on."""
    found = _document(folder / records.ENVIRONMENT_FILE)
    rows = [(name, _shown(value)) for name, value in found.items()]
    return f"<h2>Environment</h2>{table(rows, head=False)}" if rows else ""


def _document(path: pathlib.Path) -> dict[str, json_values.Json]:
    """The JSON object in a file; empty where there is none."""
    try:
        text, _ = files.read_regular(path)
        found = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
