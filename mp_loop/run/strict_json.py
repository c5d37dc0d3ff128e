"""JSON that every reader accepts, with the numbers that JSON does not have.

    strict_json.to_line({"loss": math.nan})     # {"loss": "nan"}
    strict_json.to_document(value)              # the same, indented
    strict_json.parse(text)                     # {"loss": nan}

NaN and infinities are the strings "nan", "inf" and "-inf" in a file and floats
again when read. Tensors and NumPy's numbers become Python's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from mp_loop.config import json_values

_NON_FINITE = ("nan", "inf", "-inf")


def to_line(value: json_values.Json) -> str:
    """Returns JSON on one line, newline included."""
    return json.dumps(_without_non_finite(to_python(value)), allow_nan=False) + "\n"


def to_document(value: json_values.Json) -> str:
    """Returns JSON on several indented lines."""
    plain = _without_non_finite(to_python(value))
    return json.dumps(plain, indent=2, allow_nan=False) + "\n"


def parse(text: str | bytes) -> json_values.Json:
    """Returns what `to_line` or `to_document` wrote.

    Raises:
      ValueError: it is not JSON.
      RecursionError: it is nested too deeply.
    """
    return _with_non_finite(json.loads(text))


def to_python(value: json_values.Json) -> json_values.Json:
    """Python's own numbers, lists and dicts, from NumPy's and TensorFlow's too."""
    if isinstance(value, Mapping):
        return {str(name): to_python(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_python(inner) for inner in value]
    if hasattr(value, "numpy"):
        value = value.numpy()
    if hasattr(value, "tolist"):
        return to_python(value.tolist())
    return value


def _without_non_finite(value: json_values.Json) -> json_values.Json:
    if isinstance(value, dict):
        return {name: _without_non_finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_non_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _with_non_finite(value: json_values.Json) -> json_values.Json:
    if isinstance(value, dict):
        return {name: _with_non_finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_non_finite(inner) for inner in value]
    return float(value) if value in _NON_FINITE else value
