"""What the values of a recorded line must be for anything to show them.

    record_checks.damage({"step": 20, "skipped_steps": None}, record_checks.METRICS)
    # "skipped_steps is null"

A value that is missing is not damaged: runs of other versions have other values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]

_BEYOND_INT64 = 2**63


def damage(line: Mapping[str, Any], checks: Mapping[str, Check]) -> str:
    """Names the first value of a line that is not what it must be, or returns ""."""
    for name, check in checks.items():
        if name in line and not check(line[name]):
            return described(name, line[name])
    return ""


def described(name: str, value: object) -> str:
    """Says what a value is, in a few characters."""
    shown = json.dumps(value)
    return f"{name} is {shown if len(shown) <= 40 else f'{shown[:37]}...'}"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _BEYOND_INT64


def _is_number(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < _BEYOND_INT64
    return type(value) is float


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


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
        ),
        _is_number,
    ),
}  # fmt: skip


def evaluation_checks(line: Mapping[str, Any], check: Check = _is_number) -> dict:
    """The checks of what an evaluation gave: every value whose name says so."""
    names = (name for name in line if str(name).startswith("eval_"))
    return {"step": _is_count, **dict.fromkeys(names, check)}
