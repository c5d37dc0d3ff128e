"""The section of a report about what a model gets right and wrong.

    section(found)       # of test_results.json, checked; "" where there is none

A task is a function from what the file holds to HTML, in the table at the end.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mp_loop.rendering import numbers
from mp_loop.report import confusion_chart, example_cards, scatter_chart, sections
from mp_loop.run import records

_MOST_PAIRS = 20  # rows of the table
_FIRST_CLASSES, _MOST_CLASSES = 30, 1000  # rows at once, and unfolded

Results = Mapping[str, Any]


def section(found: Results) -> str:
    """What the model gets right and wrong on the test data."""
    if not found:
        return ""
    unusable = ""
    if found["unusable"]:
        unusable = sections.warning(
            f"{found['unusable']:,} of {found['examples']:,} outputs are NaN or "
            "infinite: they count as wrong, and as no prediction."
        )
    body = _TASKS[found["task"]](found)
    return f"<h2>Right and wrong</h2>{unusable}{body}"


def _of_classes(found: Results) -> str:
    """Confusion, numbers of each class, and single examples."""
    names = [str(one["name"]) for one in found["classes"]]
    said = (
        f"On {found['examples']:,} test examples: top-1 accuracy {found['top_1']:.4f}"
    )
    if "top_5" in found:
        said += f", top-5 {found['top_5']:.4f}"
    confused = _confused_pairs(found, names)
    if 1 < len(names) <= confusion_chart.MOST_CLASSES:
        confused = confusion_chart.draw(
            names, _matrix(found), [one["count"] for one in found["classes"]]
        )

    def told(example: Mapping[str, Any]) -> list[tuple[str, str]]:
        predicted = example["predicted"]
        said = "none"
        if predicted is not None:
            said = f"{names[predicted]} {example['probability']:.3f}"
        label = f"{names[example['label']]} {example['label_probability']:.3f}"
        return [("predicted", said), ("true", label)]

    worst = "Worst: the true class was given the lowest probability"
    return (
        sections.paragraph(f"{said}.")
        + f'<div class="halves">{confused}{_class_table(found["classes"])}</div>'
        + _examples(worst, found["worst"], told)
        + _examples("Best: right, and the most certain", found["best"], told)
    )


def _examples(title: str, examples: Sequence[Any], told: example_cards.Told) -> str:
    drawn = example_cards.draw(examples, told)
    return f"<h3>{html.escape(title)}</h3>{drawn}" if drawn else ""


def _matrix(found: Results) -> list[list[int]]:
    """The confusion matrix of few classes, whose every pair is known."""
    size = len(found["classes"])
    matrix = [[0] * size for _ in range(size)]
    for i, one in enumerate(found["classes"]):
        matrix[i][i] = one["right"]
    for pair in found["confused"]:
        matrix[pair["label"]][pair["predicted"]] = pair["count"]
    return matrix


def _confused_pairs(found: Results, names: Sequence[str]) -> str:
    """The classes that are taken for one another most often."""
    rows = [("true class", "predicted", "examples", "share of the class")]
    for pair in found["confused"][:_MOST_PAIRS]:
        label, count = pair["label"], pair["count"]
        share = count / max(found["classes"][label]["count"], 1)
        other = names[pair["predicted"]]
        rows.append((names[label], other, f"{count:,}", f"{share:.1%}"))
    if len(rows) == 1:
        return sections.paragraph("No class was taken for another.")
    return f"<div><h3>Most often confused</h3>{sections.table(rows)}</div>"


def _of_labels(found: Results) -> str:
    """Numbers of each label, and the examples of the highest loss."""
    names = [str(one["name"]) for one in found["labels"]]

    def told(example: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [
            (what, ", ".join(names[number] for number in example[key]) or "none")
            for what, key in (("predicted", "predictions"), ("true", "labels"))
        ]

    said = f"On {found['examples']:,} test examples: all labels are right in"
    return (
        sections.paragraph(
            f"{said} {found['exact']:.4f} of them. A label is predicted where its "
            "probability is 0.5 or more."
        )
        + _class_table(found["labels"])
        + _examples("Worst: the highest loss", found["worst"], told)
    )


def _class_table(given: Sequence[Mapping[str, Any]]) -> str:
    """Precision, recall and F1 of each class; of many, the lowest F1 first."""
    classes = list(given)
    title = "Classes"
    if len(classes) > confusion_chart.MOST_CLASSES:
        title = "Classes, the lowest F1 first"
        classes.sort(key=lambda one: (not one["count"] + one["predicted"], _f1(one)))
    head = ["class", "examples", "precision", "recall", "F1"]
    if classes and "auroc" in classes[0]:
        head.append("AUROC")
    rows = [_class_row(one) for one in classes[:_MOST_CLASSES]]
    first = sections.table([head, *rows[:_FIRST_CLASSES]])
    rest = ""
    if len(rows) > _FIRST_CLASSES:
        more = len(rows) - _FIRST_CLASSES
        rest = (
            f"<details><summary>{more} more</summary>"
            f"{sections.table([head, *rows[_FIRST_CLASSES:]])}</details>"
        )
    if left := len(classes) - len(rows):
        rest += sections.paragraph(f"{left:,} more in {records.TEST_RESULTS_FILE}.")
    return f"<div><h3>{title}</h3>{first}{rest}</div>"


def _class_row(one: Mapping[str, Any]) -> list[str]:
    """A row of the table; what cannot be computed is a dash."""
    ratios = [
        (one["right"], one["predicted"]),
        (one["right"], one["count"]),
        (2 * one["right"], one["count"] + one["predicted"]),
    ]
    shown = (f"{x / y:.3f}" if y else "-" for x, y in ratios)
    row = [str(one["name"]), f"{one['count']:,}", *shown]
    if "auroc" in one:
        row.append("-" if math.isnan(one["auroc"]) else f"{one['auroc']:.3f}")
    return row


def _f1(one: Mapping[str, Any]) -> float:
    return 2 * one["right"] / max(one["count"] + one["predicted"], 1)


def _of_targets(found: Results) -> str:
    """Errors of each target, predicted against true, and the largest errors."""
    head = ("target", "MAE", "MAE of the median", "RMSE", "RMSE of the mean", "R2")
    keys = ("mae", "median_mae", "rmse", "mean_rmse")
    rows: list[Sequence[str]] = [head]
    for one in found["targets"]:
        values = [numbers.short(one[key]) for key in keys]
        rows.append((str(one["name"]), *values, f"{one['r2']:.4f}"))
    names = [str(one["name"]) for one in found["targets"]]

    def told(example: Mapping[str, Any]) -> list[tuple[str, str]]:
        several = len(names) > 1
        return [
            (f"{what} {name}" if several else what, numbers.short(value))
            for what, key in (("predicted", "predictions"), ("true", "labels"))
            for name, value in zip(names, example[key], strict=True)
        ]

    charts = "".join(
        scatter_chart.draw(str(one["name"]), one["points"]) for one in found["targets"]
    )
    return (
        sections.table(rows)
        + sections.paragraph(
            f"On {found['examples']:,} test examples, in the units of the data. Beside "
            "each error is that of always predicting the median, or the mean, of the "
            "training targets."
        )
        + f'<div class="figures">{charts}</div>'
        + _examples("Largest errors", found["worst"], told)
    )


_TASKS: Mapping[str, Callable[[Results], str]] = {
    "classification": _of_classes,
    "multilabel": _of_labels,
    "regression": _of_targets,
}
