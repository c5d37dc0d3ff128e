"""Classes on a page: which is taken for which, and how often each is right.

    confusion(found, names)         # a matrix, or of many classes a table of pairs
    numbers_of(found["classes"])    # precision, recall and F1 of each

What test_results.json holds of classes is explained in `run.class_scores`,
`run.label_scores` and `run.mask_scores`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mp_loop.config import json_values
from mp_loop.report import confusion_chart, sections
from mp_loop.run import records

_MOST_PAIRS = 20  # rows of the table
_FIRST_CLASSES, _MOST_CLASSES = 30, 1000  # rows at once, and unfolded

Class = json_values.Object


def confusion(found: json_values.Object, names: Sequence[str]) -> str:
    """Shows which classes are taken for which.

    Args:
      found: its `classes` and `confused` are shown.
      names: of the classes.
    """
    if not 1 < len(names) <= confusion_chart.MOST_CLASSES:
        return _pairs(found, names)
    sizes = [one["count"] for one in found["classes"]]
    return confusion_chart.draw(names, _matrix(found), sizes)


def _matrix(found: json_values.Object) -> list[list[int]]:
    """The confusion matrix of few classes, whose every pair is known."""
    size = len(found["classes"])
    matrix = [[0] * size for _ in range(size)]
    for i, one in enumerate(found["classes"]):
        matrix[i][i] = one["right"]
    for pair in found["confused"]:
        matrix[pair["label"]][pair["predicted"]] = pair["count"]
    return matrix


def _pairs(found: json_values.Object, names: Sequence[str]) -> str:
    """The classes that are taken for one another most often."""
    rows = [("true class", "predicted", "count", "share of the class")]
    for pair in found["confused"][:_MOST_PAIRS]:
        label, count = pair["label"], pair["count"]
        share = count / max(found["classes"][label]["count"], 1)
        other = names[pair["predicted"]]
        rows.append((names[label], other, f"{count:,}", f"{share:.1%}"))
    if len(rows) == 1:
        return sections.paragraph("No class was taken for another.")
    return f"<div><h3>Most often confused</h3>{sections.table(rows)}</div>"


def numbers_of(given: Sequence[Class], unit: str = "examples") -> str:
    """Precision, recall and F1 of each class; of many, the lowest F1 first.

    Args:
      given: the classes; those with `auroc` have a column of it, and those with a
        `color`, of pixels, one of IoU.
      unit: what is counted.
    """
    classes, title = list(given), "Classes"
    if len(classes) > confusion_chart.MOST_CLASSES:
        title = "Classes, the lowest F1 first"
        classes.sort(key=lambda one: (not one["count"] + one["predicted"], _f1(one)))
    head = ["class", unit, "precision", "recall", "F1"]
    head += [name for key, name in (("auroc", "AUROC"), ("color", "IoU"))
             if classes and key in classes[0]]  # fmt: skip
    rows = [_row(one) for one in classes[:_MOST_CLASSES]]
    rest = ""
    if len(rows) > _FIRST_CLASSES:
        more = len(rows) - _FIRST_CLASSES
        rest = (
            f"<details><summary>{more} more</summary>"
            f"{sections.table([head, *rows[_FIRST_CLASSES:]])}</details>"
        )
    if left := len(classes) - len(rows):
        rest += sections.paragraph(f"{left:,} more in {records.TEST_RESULTS_FILE}.")
    first = sections.table([head, *rows[:_FIRST_CLASSES]])
    return f"<div><h3>{title}</h3>{first}{rest}</div>"


def _row(one: Class) -> list[str]:
    """A row of the table; what cannot be computed is a dash."""
    right, both = one["right"], one["count"] + one["predicted"]
    ratios = [(right, one["predicted"]), (right, one["count"]), (2 * right, both)]
    if "color" in one:
        ratios.append((right, both - right))
    shown = [f"{x / y:.3f}" if y > 0 else "-" for x, y in ratios]
    if "auroc" in one:
        shown.append("-" if math.isnan(one["auroc"]) else f"{one['auroc']:.3f}")
    return [str(one["name"]), f"{one['count']:,}", *shown]


def _f1(one: Class) -> float:
    return 2 * one["right"] / max(one["count"] + one["predicted"], 1)
