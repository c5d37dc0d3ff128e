"""Single examples of the test data on a page: pictures, texts, or rows of a table.

    draw(examples, told)      # told(example): [("predicted", "cat 0.97"), ...]

What the examples hold was checked when they were read (`records`).
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

from mp_loop.config import json_values
from mp_loop.rendering import numbers, tables

Example = json_values.Object
Told = Callable[[Example], Sequence[tuple[str, str]]]

_MOST_COLUMNS = 8
# Pictures of an example, and what is said of them to who does not see them.
_PICTURES = (
    ("image", ""),
    ("true_mask", "true mask: "),
    ("predicted_mask", "predicted mask: "),
)


def draw(examples: Sequence[Example], told: Told) -> str:
    """Shows examples in their order.

    Args:
      examples: of test_results.json, all of one kind.
      told: what is said of an example: names and values.
    """
    if not examples:
        return ""
    if not any("image" in one or "text" in one for one in examples):
        return f'<div class="wide">{tables.html(_rows(examples, told))}</div>'
    several = any("text" in one or "true_mask" in one for one in examples)
    wide = " texts" if several else ""
    cards = "".join(_card(one, told(one)) for one in examples)
    return f'<div class="examples{wide}">{cards}</div>'


def _card(example: Example, told: Sequence[tuple[str, str]]) -> str:
    """An image or a text, and what is said of it."""
    place = {"file": example["name"]} if "name" in example else {}
    place = place or {"example": example["index"]}
    said = [*told, *((what, str(value)) for what, value in place.items())]
    shown = ""
    alt = html.escape(", ".join(f"{name} {value}" for name, value in said))
    for key, what in _PICTURES:
        if key in example:
            shown += f'<img src="{example[key]}" alt="{what}{alt}">'
    if "text" in example:
        shown = f"<blockquote>{html.escape(str(example['text']))}</blockquote>"
    lines = "".join(
        f"<div><span>{html.escape(name)}</span> {html.escape(value)}</div>"
        for name, value in said
    )
    return f'<div class="example">{shown}{lines}</div>'


def _rows(examples: Sequence[Example], told: Told) -> tables.Rows:
    """A row for each example, with the first columns of the data."""
    columns = [str(name) for name, _ in examples[0].get("row", ())[:_MOST_COLUMNS]]
    head = ["example", *(name for name, _ in told(examples[0])), *columns]
    rows = [head]
    for one in examples:
        values = [numbers.short(value) for _, value in one.get("row", ())]
        values += [""] * len(columns)
        said = [value for _, value in told(one)]
        rows.append([str(one["index"]), *said, *values[: len(columns)]])
    return rows
