"""Valid values of single settings."""

import pytest

from mp_loop.config import settings

REFUSED = {
    "choice": ({"precision": "float8"}, "--precision (float8) must be one of: float16"),
    "range": ({"batch_size": 0}, "--batch_size (0) must be at least 1."),
    "below": ({"backoff_factor": 1.0}, "--backoff_factor (1.0) must be less than 1."),
    "above": ({"growth_factor": 1.0}, "--growth_factor (1.0) must be greater than 1."),
    "most": ({"seed": 2**31}, "--seed (2147483648) must be at most 2147483647."),
    "nan": ({"learning_rate": float("nan")}, "--learning_rate (nan) must be finite."),
    "inf": ({"initial_scale": float("inf")}, "--initial_scale (inf) must be finite."),
    "lines": (
        {"model": "a\nb"},
        "--model ('a\\nb') must be a single line without control",
    ),
    "controls": ({"output_dir": "a\0b"}, "--output_dir ('a\\x00b') must be a single"),
    "no UTF-8": (
        {"output_dir": "a\udcff"},
        "--output_dir ('a\\udcff') must be text in UTF-8.",
    ),
    "a blank at the end": (
        {"output_dir": "a "},
        "--output_dir ('a ') must not end with a blank: flagfiles do not keep it.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_values_are_refused_in_one_line(name):
    values, message = REFUSED[name]
    with pytest.raises(ValueError) as error:
        settings.Config.of(**values)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
