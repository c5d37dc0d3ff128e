"""Declaration of one setting: its default, its help text and its valid values.

class Data(Section):
batch_size: int = setting(128, "Examples of one update.", at_least=1)

Data(batch_size=0)   # ValueError: --batch_size (0) must be at least 1.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from mp_loop.config import limits

# A tab is one that a flagfile keeps.
_CONTROLS = "[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]"

Value = str | int | float | bool | None


@dataclasses.dataclass(frozen=True)
class Valid:
    """Which values a setting may have; `None` sets no limit.

    Switches are valid, with choices too: these are words for something in between.
    Numbers must also be finite and no larger than float32 allows; texts must be what
    a line of a flagfile can keep.
    """

    choices: tuple[str, ...] | None = None
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def check(self, flag: str, value: Value) -> None:
        """Raises ValueError, naming the flag, unless the value is None or valid."""
        if value is None:
            return
        given = f"--{flag} ({value})"
        if isinstance(value, bool):
            return
        if self.choices is not None and value not in self.choices:
            known = ", ".join(filter(None, self.choices))
            raise ValueError(f"{given} must be one of: {known}.")
        if isinstance(value, str) and re.search(_CONTROLS, value):
            raise ValueError(
                f"--{flag} ({value!r}) must be a single line without control "
                "characters."
            )
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise ValueError(f"--{flag} ({value!r}) must be text in UTF-8.")
        if isinstance(value, str) and value != value.rstrip():
            raise ValueError(
                f"--{flag} ({value!r}) must not end with a blank: flagfiles do not "
                "keep it."
            )
        if isinstance(value, (int, float)):
            self._check_number(given, value)

    def _check_number(self, given: str, value: float) -> None:
        if not math.isfinite(value):
            raise ValueError(f"{given} must be finite.")
        if isinstance(value, float) and abs(value) > limits.LARGEST:
            raise ValueError(
                f"{given} must be at most {limits.LARGEST:g}, the largest float32."
            )
        if self.at_least is not None and value < self.at_least:
            raise ValueError(f"{given} must be at least {self.at_least}.")
        if self.at_most is not None and value > self.at_most:
            raise ValueError(f"{given} must be at most {self.at_most}.")
        if self.above is not None and value <= self.above:
            raise ValueError(f"{given} must be greater than {self.above}.")
        if self.below is not None and value >= self.below:
            raise ValueError(f"{given} must be less than {self.below}.")


def setting(default: Value, help_text: str, **valid: float | tuple[str, ...]) -> Any:
    """Declares a field of a section.

    Args:
      default: its default value; None: not given.
      help_text: of its flag.
      **valid: fields of `Valid`.
    """
    metadata = {"help": help_text, "valid": Valid(**valid)}
    return dataclasses.field(default=default, metadata=metadata)


class Section:
    """Base of the sections, which are frozen dataclasses: checks each value."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            field.metadata["valid"].check(field.name, getattr(self, field.name))
