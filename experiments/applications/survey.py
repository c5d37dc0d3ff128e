"""Measures every architecture of keras.applications and backbone of keras_hub.

    python -m experiments.applications.survey --output_dir=runs/survey

For each, of random weights, in float16 and bfloat16: the share of the multiply-adds of
16-bit operands, the relative error of outputs and of all gradients against float32,
what of the forward and backward graph runs below float32 and should not; and the same
of the model that Keras makes under its mixed policy. `results.jsonl` gets a line as
soon as a model is measured, `table.md` the table; a model that is there already is not
measured again. Exit code 1 if a model fails or computes below float32.
"""

from __future__ import annotations

import functools
import gc
import json
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags

from mp_loop.hardware import startup

startup.prefer_onednn()  # the kernels that the commands take; before TensorFlow loads

import keras  # noqa: E402

from experiments.applications import backbones, measuring  # noqa: E402
from mp_loop.config import choices  # noqa: E402
from mp_loop.models import applications  # noqa: E402
from mp_loop.precision import coverage  # noqa: E402
from mp_loop.rendering import tables  # noqa: E402

flags.DEFINE_string("output_dir", "runs/survey", "Where results and table go.")
flags.DEFINE_list("models", [], "Names; all if empty.")
flags.DEFINE_list("precisions", ["float16", "bfloat16"], "Of them.")


def main(argv: list[str]) -> None:
    """Measures what is not yet in the results."""
    del argv
    folder = pathlib.Path(flags.FLAGS.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.jsonl"
    path.touch()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    done = {(row["model"], row["precision"]) for row in rows}
    for name in flags.FLAGS.models or names():
        missing = [x for x in flags.FLAGS.precisions if (name, x) not in done]
        found = measuring.measure(name, missing) if missing else []
        with open(path, "a") as results:
            for row in found:
                print(json.dumps(row), file=results)
                print(json.dumps(row), flush=True)
        rows += found
        (folder / "table.md").write_text(report(rows))
        keras.backend.clear_session()
        gc.collect()
    bad = sorted({row["model"] for row in rows if "raises" in row or row["below"]})
    if bad:
        sys.exit(f"Failed, or below float32: {', '.join(bad)}.")


def names() -> list[str]:
    """Returns what there is to be measured."""
    return [*backbones.NAMES, *sorted(applications.architectures())]


def report(rows: Sequence[measuring.Row]) -> str:
    """Returns a table for each precision, in Markdown."""
    parts = []
    for precision in choices.HALF_PRECISIONS:
        of_it = sorted(
            (row for row in rows if row["precision"] == precision),
            key=lambda row: row["model"].lower(),
        )
        if of_it:
            lines = tables.markdown([HEADER, *map(cells, of_it)])
            parts.append("\n".join([f"## {precision}", "", *lines, ""]))
    return "\n".join(parts)


HEADER = (
    "model",
    "in 16 bits",
    "Keras",
    "error of outputs",
    "Keras",
    "error of gradients",
    "Keras",
    "below float32",
    "Keras",
)


def cells(row: measuring.Row) -> list[str]:
    """Returns a row of the table."""
    if "raises" in row:
        return [row["model"], "raises", *[""] * 7]
    theirs = row["keras"]
    pick = functools.partial(_cell, theirs)
    return [
        row["model"],
        coverage.percent(row["share"]),
        "raises" if "raises" in theirs else coverage.percent(theirs["share"]),
        f"{row['outputs']:.1e}",
        pick("outputs"),
        _cell(row, "gradients"),
        pick("gradients"),
        str(sum(row["below"].values())),
        "" if "raises" in theirs else str(sum(theirs["below"].values())),
    ]


def _cell(row: measuring.Row, key: str) -> str:
    return "" if row.get(key) is None else f"{row[key]:.1e}"


if __name__ == "__main__":
    app.run(main)
