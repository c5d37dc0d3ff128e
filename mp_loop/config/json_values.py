"""What JSON holds, as types.

What a value of an object is stands where the file is described (`run/records.py`,
docs/reading-a-run.md), and is checked when the file is read (`run/record_checks.py`):
a reader computes with it, as with what `json.loads` returns. Where an object is
written, NumPy's and TensorFlow's numbers and arrays may stand in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

# A value: None, a bool, a number, a string, a list of values, or an object.
Json: TypeAlias = Any

# An object that is only read: a line of metrics, a summary.
Object: TypeAlias = Mapping[str, Json]
