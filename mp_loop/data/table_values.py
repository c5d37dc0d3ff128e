"""Values of a table's cells: numbers, labels, and how messages show them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from mp_loop.config import json_values
from mp_loop.data import classes

_INTEGER = re.compile(r"[+-]?\d{1,18}")


def number(value: json_values.Json) -> float:
    """Returns a value as a number; NaN if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def label_text(value: json_values.Json, class_names: Sequence[str]) -> str | None:
    """Returns a label as the name of its class, as `tables.load` has it.

    It is None where there is no label.

    Args:
      value: what stands in the table.
      class_names: the names that there are.
    """
    if value is None or value == "":
        return None
    text = label(value)
    if text not in class_names and _INTEGER.fullmatch(text):
        return str(int(text))
    return text


def label(value: json_values.Json) -> str:
    """Returns a label as text: true and false as JSON writes them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def told(value: object) -> str:
    """Returns a value for a message."""
    if value is None or value == "":
        return "nothing"
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."


def with_integers(*parts: classes.Part) -> tuple[classes.Part, ...]:
    """Makes integers of the labels if all of them are, so that 10 follows 9."""
    labels = [part.labels for part in parts]
    known = np.unique(np.concatenate(labels))
    if not all(_INTEGER.fullmatch(label) for label in known):
        return parts
    return tuple(
        dataclasses.replace(part, labels=part.labels.astype(np.int64)) for part in parts
    )
