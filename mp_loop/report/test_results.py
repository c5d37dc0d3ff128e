"""The section of a report about what a model gets right and wrong.

    section(found)       # of test_results.json, checked; "" where there is none

A task is a function from what the file holds to HTML, in the table at the end.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence

from mp_loop.config import json_values
from mp_loop.rendering import numbers
from mp_loop.report import class_tables, example_cards, scatter_chart, sections

_MOST_CHARTS, _MOST_TOLD = 12, 4  # targets with a chart, and told of an example

Results = json_values.Object


def section(found: Results) -> str:
    """What the model gets right and wrong on the test data."""
    if not found:
        return ""
    unusable = ""
    if found["unusable"]:
        outputs = found.get("pixels", found["examples"])
        unusable = sections.warning(
            f"{found['unusable']:,} of {outputs:,} outputs are NaN or infinite: they "
            "count as wrong, and as no prediction."
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

    def told(example: json_values.Object) -> list[tuple[str, str]]:
        predicted = example["predicted"]
        said = "none"
        if predicted is not None:
            said = f"{names[predicted]} {example['probability']:.3f}"
        label = f"{names[example['label']]} {example['label_probability']:.3f}"
        return [("predicted", said), ("true", label)]

    worst = "Worst: the true class was given the lowest probability"
    return (
        sections.paragraph(f"{said}.")
        + _halves(found, names)
        + _examples(worst, found["worst"], told)
        + _examples("Best: right, and the most certain", found["best"], told)
    )


def _halves(found: Results, names: Sequence[str], unit: str = "examples") -> str:
    """Which classes are taken for which, and the numbers of each."""
    confusion = class_tables.confusion(found, names)
    table = class_tables.numbers_of(found["classes"], unit)
    return f'<div class="halves">{confusion}{table}</div>'


def _legend(classes: Sequence[json_values.Object]) -> str:
    """The colours of classes in masks."""
    entries = "".join(
        f'<span><i class="swatch" style="background:{one["color"]}"></i>'
        f"{html.escape(str(one['name']))}</span>"
        for one in classes
    )
    return f'<p class="legend">{entries}</p>'


def _examples(
    title: str, examples: Sequence[json_values.Object], told: example_cards.Told
) -> str:
    drawn = example_cards.draw(examples, told)
    return f"<h3>{html.escape(title)}</h3>{drawn}" if drawn else ""


def _of_pixels(found: Results) -> str:
    """Confusion and IoU of classes, and masks over the worst images."""
    names = [str(one["name"]) for one in found["classes"]]
    right = sum(one["right"] for one in found["classes"])
    share, pixels = right / max(found["pixels"], 1), found["pixels"]
    said = f"On {found['examples']:,} test images: {share:.4f} of {pixels:,} pixels "

    def told(example: json_values.Object) -> list[tuple[str, str]]:
        return [("right pixels", f"{example['right']:.3f}")]

    worst = "Worst: the image, its true mask and the predicted one"
    return (
        sections.paragraph(f"{said}are right.")
        + _halves(found, names, "pixels")
        + _legend(found["classes"])
        + _examples(worst, found["worst"], told)
    )


def _of_labels(found: Results) -> str:
    """Numbers of each label, and the examples of the highest loss."""
    names = [str(one["name"]) for one in found["labels"]]

    def told(example: json_values.Object) -> list[tuple[str, str]]:
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
        + class_tables.numbers_of(found["labels"])
        + _examples("Worst: the highest loss", found["worst"], told)
    )


def _of_targets(found: Results) -> str:
    """Errors of each target, predicted against true, and the largest errors."""
    head = ("target", "MAE", "MAE of the median", "RMSE", "RMSE of the mean", "R2")
    keys = ("mae", "median_mae", "rmse", "mean_rmse")
    rows: list[Sequence[str]] = [head]
    for one in found["targets"]:
        values = [numbers.short(one[key]) for key in keys]
        rows.append((str(one["name"]), *values, f"{one['r2']:.4f}"))
    names = [str(one["name"]) for one in found["targets"]]

    def told(example: json_values.Object) -> list[tuple[str, str]]:
        some = [f" {name}" for name in names[:_MOST_TOLD]] if names[1:] else [""]
        return [
            (f"{what}{name}", numbers.short(value))
            for what, key in (("predicted", "predictions"), ("true", "labels"))
            for name, value in zip(some, example[key], strict=False)
        ]

    charts = "".join(
        scatter_chart.draw(str(one["name"]), one["points"])
        for one in found["targets"][:_MOST_CHARTS]
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
    "segmentation": _of_pixels,
    "regression": _of_targets,
}
