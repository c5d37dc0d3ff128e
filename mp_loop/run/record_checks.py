"""What the values of a recorded line must be for anything to show them.

    record_checks.damage({"step": 20, "skipped_steps": None}, record_checks.METRICS)
    # "skipped_steps is null"

A value that is missing is not damaged: runs of other versions have other values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence

from mp_loop.config import json_values

Check = Callable[[object], bool]

_BEYOND_INT64 = 2**63
# What an example may have to be seen.
_SHOWN = ("name", "image", "text", "row", "true_mask", "predicted_mask")
_PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*")


def damage(line: json_values.Object, checks: Mapping[str, Check]) -> str:
    """Names the first value of a line that is not what it must be, or returns ""."""
    for name, check in checks.items():
        if name in line and not check(line[name]):
            return described(name, line[name])
    return ""


def described(name: str, value: object) -> str:
    """Says what a value is, in a few characters."""
    shown = json.dumps(value)
    return f"{name} is {shown if len(shown) <= 40 else f'{shown[:37]}...'}"


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _BEYOND_INT64


def _is_number(value: object) -> bool:
    if type(value) is int:
        return abs(value) < _BEYOND_INT64
    return type(value) is float


def _is_number_or_none(value: object) -> bool:
    return value is None or _is_number(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_name(value: object) -> bool:
    """A text; `nan` and `inf` were read as numbers."""
    return _is_text(value) or (type(value) is float and not math.isfinite(value))


def _is_mapping_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _is_list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_record(checks: Mapping[str, Check], needed: tuple[str, ...] = ()) -> Check:
    return lambda value: (
        isinstance(value, dict)
        and all(name in value for name in needed)
        and not damage(value, checks)
    )


def _is_record_or_none(checks: Mapping[str, Check]) -> Check:
    return lambda value: value is None or _is_record(checks)(value)


def _is_named_number(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return _is_name(value[0]) and _is_number(value[1])


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_picture(value: object) -> bool:
    """Nothing but an image in the text itself: a page must load nothing."""
    return isinstance(value, str) and bool(_PICTURE.fullmatch(value))


def _is_color(value: object) -> bool:
    return isinstance(value, str) and bool(re.fullmatch("#[0-9a-f]{6}", value))


def _is_list_of_whole(checks: Mapping[str, Check]) -> Check:
    return _is_list_of(_is_record(checks, needed=tuple(checks)))


def _is_list_of_examples(checks: Mapping[str, Check]) -> Check:
    needed = tuple(name for name in checks if name not in _SHOWN)
    return _is_list_of(_is_record(checks, needed))


_COUNTS = (
    "step", "applied_steps", "skipped_steps", "forward_overflows", "rollbacks",
    "memory_bytes",
)  # fmt: skip
_NUMBERS = (
    "loss", "accuracy", "learning_rate", "loss_scale", "grad_norm",
    "examples_per_second", "input_wait",
)  # fmt: skip
METRICS: Mapping[str, Check] = {
    **dict.fromkeys(_COUNTS, _is_count),
    **dict.fromkeys(_NUMBERS, _is_number_or_none),
    "overflowed": _is_mapping_of(_is_count),
    "skip_reasons": _is_mapping_of(_is_count),
    "overflow": _is_record({"text": _is_text, "step": _is_count}),
}
_ENTRY = {
    "inf": _is_count,
    "nan": _is_count,
    "headroom": _is_number_or_none,
    "underflow": _is_number,
    "first": lambda value: type(value) is int and abs(value) < 2**16,
    "histogram": _is_list_of(_is_count),
}
_LAYER = {
    "name": _is_text,
    "dtype": _is_text,
    "activations": _is_record_or_none(_ENTRY),
    "activation_grads": _is_record_or_none(_ENTRY),
}
NUMERICS: Mapping[str, Check] = {
    "step": _is_count,
    "loss_scale": _is_number,
    "layers": _is_list_of(_is_record(_LAYER, needed=("name",))),
}
SUMMARY: Mapping[str, Check] = {
    **dict.fromkeys(
        ("steps", "applied_steps", "skipped_steps", "best_step"), _is_count
    ),
    **dict.fromkeys(
        (
            "final_loss_scale", "milliseconds_per_step", "examples_per_second",
            "train_seconds", "peak_memory_bytes", "majority_accuracy",
            "majority_mean_iou", "mean_baseline", "median_baseline",
        ),
        _is_number,
    ),
}  # fmt: skip

_EXAMPLE = {
    "index": _is_count,
    "name": _is_name,
    "image": _is_picture,
    "text": _is_name,
    "row": _is_list_of(_is_named_number),
}
_EXAMPLE_OF_CLASSES = _EXAMPLE | {
    "label": _is_count,
    "predicted": lambda value: value is None or _is_count(value),
    "probability": _is_number,
    "label_probability": _is_number,
}
_EXAMPLE_OF_TARGETS = _EXAMPLE | dict.fromkeys(
    ("labels", "predictions"), _is_list_of(_is_number)
)
_CLASS = {
    "name": _is_name,
    **dict.fromkeys(("count", "predicted", "right"), _is_count),
}
_CONFUSED = dict.fromkeys(("label", "predicted", "count"), _is_count)
_TARGET = {
    "name": _is_name,
    **dict.fromkeys(("mae", "rmse", "r2", "median_mae", "mean_rmse"), _is_number),
    "points": _is_list_of(_is_pair),
}
_CLASS_OF_PIXELS = _CLASS | {"color": _is_color}
_EXAMPLE_OF_PIXELS = _EXAMPLE | {
    "right": _is_number,
    "true_mask": _is_picture,
    "predicted_mask": _is_picture,
}
_LABEL = _CLASS | {"auroc": _is_number}
_EXAMPLE_OF_LABELS = _EXAMPLE | dict.fromkeys(
    ("labels", "predictions"), _is_list_of(_is_count)
)
_ALL = {"task": _is_text, "examples": _is_count, "unusable": _is_count}
# What test_results.json must hold, by task; `top_5` alone may be missing.
_TEST_RESULTS: Mapping[str, Mapping[str, Check]] = {
    "classification": _ALL
    | {
        "top_1": _is_number,
        "classes": _is_list_of_whole(_CLASS),
        "confused": _is_list_of_whole(_CONFUSED),
        **dict.fromkeys(("worst", "best"), _is_list_of_examples(_EXAMPLE_OF_CLASSES)),
    },
    "multilabel": _ALL
    | {
        "exact": _is_number,
        "labels": _is_list_of_whole(_LABEL),
        "worst": _is_list_of_examples(_EXAMPLE_OF_LABELS),
    },
    "segmentation": _ALL
    | {
        "pixels": _is_count,
        "classes": _is_list_of_whole(_CLASS_OF_PIXELS),
        "confused": _is_list_of_whole(_CONFUSED),
        "worst": _is_list_of_examples(_EXAMPLE_OF_PIXELS),
    },
    "regression": _ALL
    | {
        "targets": _is_list_of_whole(_TARGET),
        "worst": _is_list_of_examples(_EXAMPLE_OF_TARGETS),
    },
}


def test_results_damage(found: json_values.Object) -> str:
    """Says what of test_results.json is not what it must be, or returns ""."""
    checks = _TEST_RESULTS.get(str(found.get("task")))
    if checks is None:
        return described("task", found.get("task"))
    missing = [name for name in checks if name not in found]
    if missing:
        return f"it has no {missing[0]}"
    if said := damage(found, checks):
        return said
    if "top_5" in found and not _is_number(found["top_5"]):
        return described("top_5", found["top_5"])
    if found["task"] in ("classification", "segmentation"):
        rows = list(found["confused"])
        if found["task"] == "classification":
            rows += [*found["worst"], *found["best"]]
        numbers = [x for one in rows for x in (one["label"], one["predicted"])]
        return _beyond(numbers, found["classes"])
    lists = [x[name] for x in found["worst"] for name in ("labels", "predictions")]
    if found["task"] == "multilabel":
        return _beyond([number for one in lists for number in one], found["labels"])
    size = len(found["targets"])
    return "" if {*map(len, lists)} <= {size} else "worst is of other targets"


def _beyond(numbers: Sequence[int | None], classes: Sequence[object]) -> str:
    """Says that a class number is none, or returns ""."""
    wrong = any(number is not None and number >= len(classes) for number in numbers)
    return "a class has no name" if wrong else ""


def evaluation_checks(line: json_values.Object, check: Check = _is_number) -> dict:
    """The checks of what an evaluation gave: every value whose name says so."""
    names = (name for name in line if str(name).startswith("eval_"))
    return {"step": _is_count, **dict.fromkeys(names, check)}
