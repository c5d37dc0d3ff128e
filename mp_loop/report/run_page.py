"""A run, or a comparison, as one page: report.html.

    report.write("runs/a")                     # after the run's files are written
    report.write_comparison("runs/b", comparison, arms)

The page holds everything it shows: it needs no network and no other file, follows
the reader's light or dark setting, and fits a phone. It is made from the files of
the run folder, and shows numerics.jsonl where there is one.
"""

from __future__ import annotations

import html
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mp_loop.config import errors, settings
from mp_loop.rendering import numbers, tables
from mp_loop.report import charts
from mp_loop.run import files, records

FILE = "report.html"
_MOST_SKIPS = 30  # rows of the table
_MOST_LOOKS = 40  # columns of a heat map

Lines = Sequence[Mapping[str, Any]]


def write(output_dir: str | os.PathLike[str], note: str = "") -> str:
    """Writes the report of a run, finished or not; returns its path.

    Args:
      output_dir: the run folder.
      note: what is to be said first, such as why the run stopped.

    Raises:
      RecordError: a file of the run is damaged, or the report cannot be written.
    """
    folder = pathlib.Path(output_dir)
    flags = _flags(folder)
    metrics, evaluations = (
        records.read_metrics(folder),
        records.read_evaluations(folder),
    )
    summary = records.read_summary(folder) if _holds(folder, "summary.json") else {}
    title = f"{flags.get('model', 'model')} on {flags.get('dataset', 'data')}"
    subtitle = f"{flags.get('precision', '')}, {flags.get('loop', '')} loop"
    if not summary:
        last = metrics[-1]["step"] if metrics else 0
        note = note or f"This run has not finished: its last line is of step {last}."
    body = [
        f"<h1>{html.escape(title)}</h1><p>{html.escape(subtitle)}</p>",
        f'<p class="note">{html.escape(note)}</p>' if note else "",
        _tiles(summary),
        _charts([("", metrics, evaluations)]),
        _skips(metrics),
        _numerics(records.read_numerics(folder, skip_damaged=True)),
        _settings(flags),
        _environment(folder),
    ]
    return _write(folder / FILE, title, body)


def write_comparison(
    output_dir: str | os.PathLike[str],
    rows: Sequence[Sequence[str]],
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
    read = [
        (
            arm,
            records.read_metrics(folder / name),
            records.read_evaluations(folder / name),
        )
        for name, arm in runs.items()
    ]
    first = folder / next(iter(runs))
    flags = _flags(first)
    title = f"Comparison: {flags.get('model')} on {flags.get('dataset')}"
    links = ", ".join(
        f'<a href="{html.escape(name)}/{FILE}">{html.escape(name)}</a>' for name in runs
    )
    body = [
        f"<h1>{html.escape(title)}</h1>",
        _wide_table(rows),
        f"<p>{html.escape(note)}</p>" if note else "",
        _charts(read),
        f"<h2>Runs</h2><p>{links}</p>",
        _settings({k: v for k, v in flags.items() if k not in ("precision", "loop")}),
        _environment(first),
    ]
    return _write(folder / FILE, title, body)


def _tiles(summary: Mapping[str, Any]) -> str:
    """The numbers that one looks for first."""
    shown = (
        ("accuracy", "eval_accuracy", "{:.4f}"),
        ("loss", "eval_loss", "{:.4f}"),
        ("steps", "steps", "{:,}"),
        ("skipped", "skipped_steps", "{:,}"),
        ("loss scale", "final_loss_scale", ""),
        ("ms a step", "milliseconds_per_step", "{:.1f}"),
        ("examples a second", "examples_per_second", "{:,.0f}"),
        ("peak memory, MiB", "peak_memory_bytes", "{:,.0f}"),
    )
    tiles = []
    for label, name, form in shown:
        if summary.get(name) is not None:
            value = summary[name] / 2**20 if name.endswith("_bytes") else summary[name]
            said = form.format(value) if form else numbers.power_of_two(value)
            tiles.append(f"<div><b>{said}</b>{label}</div>")
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _charts(runs: Sequence[tuple[str, Lines, Lines]]) -> str:
    """The curves of one or more runs: (label, metrics, evaluations) each."""

    def series(name: str, of: int = 1, stairs: bool = False) -> list[charts.Series]:
        return [
            charts.Series(
                run[0],
                [line["step"] for line in run[of]],
                [_number(line.get(name)) for line in run[of]],
                stairs,
            )
            for run in runs
        ]

    marks = [
        charts.Mark(
            skip["step"],
            _number(skip.get("loss_scale")),
            f"{label} step {skip['step']}: {skip['skipped']} skipped".strip(),
        )
        for label, metrics, _ in runs
        for skip in _skipped(metrics)
    ]
    crosses = " (crosses: skipped steps)" if marks else ""
    figures = [
        charts.lines("Training loss", series("loss")),
        charts.lines("Evaluation accuracy", series("eval_accuracy", 2)),
        charts.lines("Evaluation loss", series("eval_loss", 2)),
        charts.lines(
            f"Loss scale{crosses}", series("loss_scale", stairs=True), marks, log=2
        ),
        charts.lines("Gradient norm", series("grad_norm"), log=10),
        charts.lines("Examples a second", series("examples_per_second")),
        charts.lines("Learning rate", series("learning_rate")),
    ]
    if any("memory_bytes" in line for _, metrics, _ in runs for line in metrics):
        figures.append(charts.lines("Memory, bytes", series("memory_bytes")))
    return f'<div class="figures">{"".join(figures)}</div>'


def _skipped(metrics: Lines) -> list[dict[str, Any]]:
    """The lines before which steps were skipped, and how many."""
    found, before = [], 0
    for line in metrics:
        count = line.get("skipped_steps", before) - before
        if count > 0:
            found.append({**line, "skipped": count})
        before += max(count, 0)
    return found


def _skips(metrics: Lines) -> str:
    """Which steps were skipped, and who overflowed where that was seen."""
    found = _skipped(metrics)
    if not found:
        return ""
    rows = [("until step", "skipped", "loss scale", "who overflowed")]
    for line in found[:_MOST_SKIPS]:
        overflowed = line.get("overflowed") or {}
        who = ", ".join(sorted(overflowed, key=overflowed.get, reverse=True)[:3])
        who += f" and {len(overflowed) - 3} more" if len(overflowed) > 3 else ""
        began = (line.get("overflow") or {}).get("text", "")
        said = "; ".join(filter(None, (who, began)))
        rows.append(
            (
                f"{line['step']}",
                f"{line['skipped']}",
                numbers.power_of_two(_number(line.get("loss_scale"))),
                said or "-",
            )
        )
    more = len(found) - _MOST_SKIPS
    tail = f"<p>And {more} more lines with skips.</p>" if more > 0 else ""
    return f"<h2>Skipped steps</h2>{_wide_table(rows)}{tail}"


def _numerics(looks: Lines) -> str:
    """Heat maps over layers and steps, of what numerics.jsonl holds."""
    looks = [look for look in looks if look.get("layers")]
    looks = looks[:: math.ceil(len(looks) / _MOST_LOOKS) or 1]
    names = [layer.get("name", "") for layer in looks[0]["layers"]] if looks else []
    looks = [look for look in looks if len(look["layers"]) == len(names)]
    if not names:
        return ""
    steps = [look["step"] for look in looks]
    panels = (
        ("activations", "headroom", "Activations: doublings left to 65504", 16, 0),
        ("activation_grads", "headroom", "Scaled gradients: doublings left", 16, 0),
        ("activation_grads", "underflow", "Scaled gradients: share lost", 0, 0.1),
    )
    figures = []
    for values, measure, title, low, high in panels:
        entries = [
            [look["layers"][i].get(values) or {} for look in looks]
            for i in range(len(names))
        ]
        cells = [[_number(entry.get(measure)) for entry in row] for row in entries]
        bad = [
            [bool(entry.get("inf") or entry.get("nan")) for entry in row]
            for row in entries
        ]
        figures.append(charts.heat_map(title, names, steps, cells, low, high, bad))
    return (
        "<h2>Numerics</h2><p>The stronger the colour, the closer to a limit of "
        "float16; crosses: inf or NaN.</p>"
        f'<div class="figures">{"".join(figures)}</div>'
    )


def _settings(flags: Mapping[str, str]) -> str:
    """The flags; those that are not the defaults stand out."""
    defaults = dict(
        word.removeprefix("--").partition("=")[::2]
        for word in settings.Config().to_flagfile().splitlines()
    )
    rows = list(flags.items())
    changed = {i for i, (name, value) in enumerate(rows) if defaults.get(name) != value}
    return (
        "<h2>Configuration</h2><details><summary>All flags; in bold what is not the "
        f"default</summary>{tables.html(rows, False, changed)}</details>"
    )


def _environment(folder: pathlib.Path) -> str:
    """What the run ran on."""
    try:
        found = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    rows = [(name, _said(value)) for name, value in found.items()]
    return f"<h2>Environment</h2>{_wide_table(rows, head=False)}"


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _wide_table(rows: tables.Rows, head: bool = True) -> str:
    return f'<div class="wide">{tables.html(rows, head)}</div>'


def _flags(folder: pathlib.Path) -> dict[str, str]:
    """The flags of a run, by name, as flags.txt has them."""
    try:
        text = (folder / records.FLAGS_FILE).read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = [line for line in text.splitlines() if line.startswith("--")]
    return dict(line.removeprefix("--").partition("=")[::2] for line in lines)


def _holds(folder: pathlib.Path, name: str) -> bool:
    return (folder / name).exists()


def _number(value: Any) -> float:
    """A number; NaN where there is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _write(path: pathlib.Path, title: str, body: Sequence[str]) -> str:
    page = _PAGE.replace("TITLE", html.escape(title)).replace("BODY", "\n".join(body))
    try:
        files.write_atomically(path, page)
    except OSError as error:
        raise errors.RecordError(f"{path} must be writable: {error}.") from error
    return str(path)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>TITLE</title>
<style>
:root {
  --page: #fff; --text: #1b1f24; --soft: #59636e; --grid: #e3e6ea; --card: #f6f8fa;
  --bad: #c4320a; --c0: #0b62c4; --c1: #8a3fb0; --c2: #0a7d55; --c3: #a8620a;
  --c4: #a67c00; --c5: #2a8fa6; --c6: #b3264f; --c7: #5a5f66;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0e1116; --text: #e6e9ed; --soft: #9aa4af; --grid: #2a3038;
    --card: #171c23; --bad: #ff7a4d; --c0: #6cb0ff; --c1: #cf9bff; --c2: #4cd3a0;
    --c3: #f0b060; --c4: #e8c14a; --c5: #67cfe6; --c6: #ff7d9f; --c7: #b4bac2;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1320px; padding: 16px; background: var(--page);
  color: var(--text); font: 15px/1.45 system-ui, sans-serif;
}
h1 { margin: 0; font-size: 24px; overflow-wrap: anywhere; }
h1 + p { margin: 0 0 12px; color: var(--soft); }
h2 { margin: 28px 0 8px; font-size: 18px; }
a { color: var(--c0); }
.note { padding: 8px 12px; border-left: 4px solid var(--bad); background: var(--card); }
.tiles { display: grid; gap: 8px; margin: 12px 0;
  grid-template-columns: repeat(auto-fill, minmax(136px, 1fr)); }
.tiles div { padding: 8px 12px; border-radius: 8px; background: var(--card);
  color: var(--soft); font-size: 13px; }
.tiles b { display: block; color: var(--text); font-size: 20px; }
.figures { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 360px), 1fr)); }
figure { margin: 0; padding: 8px; border-radius: 8px; background: var(--card);
  align-self: start; position: relative; }
figcaption { font-weight: 600; font-size: 14px; }
figure output { position: absolute; top: 8px; right: 10px; font-size: 12px;
  padding-left: 6px; background: var(--card); }
svg { display: block; width: 100%; height: auto; touch-action: pan-y; }
svg text { fill: var(--soft); font-size: 11px; }
svg line { stroke: var(--grid); }
svg path { fill: none; stroke-width: 1.7; stroke-linejoin: round; }
svg .faint { opacity: .45; }
svg .cross { stroke: var(--bad); stroke-width: 2; }
svg .hair { stroke: var(--soft); stroke-dasharray: 3 3; }
.legend { margin: 4px 0 0; font-size: 12px; }
.legend span { margin-right: 12px; white-space: nowrap; }
.legend i { display: inline-block; width: 12px; height: 3px; margin-right: 5px;
  vertical-align: middle; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
td, th { padding: 3px 14px 3px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--grid); }
td:last-child { overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; }
.changed td { font-weight: 700; }
summary { cursor: pointer; color: var(--soft); }
</style>
</head>
<body>
BODY
<script>
// What is under the pointer, said in the corner of a chart.
for (const svg of document.querySelectorAll("svg[data-series]")) {
  const series = JSON.parse(svg.dataset.series);
  const [low, high, left, right] = JSON.parse(svg.dataset.x);
  const hair = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const said = document.createElement("output");
  hair.setAttribute("class", "hair");
  svg.after(said);
  const leave = () => { hair.remove(); said.textContent = ""; };
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const at = low + ((place - left) / (right - left)) * (high - low);
    if (at < low || at > high) return leave();
    const near = (xs) => xs.reduce(
      (best, x, i) => Math.abs(x - at) < Math.abs(xs[best] - at) ? i : best, 0);
    said.replaceChildren();
    let step = 0;
    for (const [label, color, xs, ys] of series) {
      const i = near(xs);
      step = xs[i];
      const value = document.createElement("span");
      value.style.color = `var(--c${color})`;
      value.textContent = ` ${ys[i] === null ? "-" : +ys[i].toPrecision(4)}`;
      value.title = label;
      said.append(value);
    }
    said.prepend(`step ${step}:`);
    const x = left + ((step - low) / (high - low)) * (right - left);
    for (const [name, value] of [["x1", x], ["x2", x], ["y1", 10], ["y2", 204]])
      hair.setAttribute(name, value);
    svg.append(hair);
  });
}
</script>
</body>
</html>
"""
