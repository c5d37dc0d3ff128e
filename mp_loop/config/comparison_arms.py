"""The arms of a comparison and of a benchmark: what `--arms` names.

    parse("custom:float16, keras:float32", loops=("custom", "keras"))

Each command says which loops and options it allows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from mp_loop.config import choices, errors


@dataclasses.dataclass(frozen=True)
class Arm:
    """One side of a comparison: a loop at a precision, with options."""

    loop: str
    precision: str
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As in `--arms`: `custom:float16+xla`."""
        return "+".join((f"{self.loop}:{self.precision}", *self.options))

    @property
    def slug(self) -> str:
        """As in names of files: `custom-float16+xla`."""
        return self.name.replace(":", "-")


def parse(
    text: str, loops: Collection[str], options: Collection[str] = ()
) -> list[Arm]:
    """Reads `--arms`: comma-separated `loop:precision` or `loop:precision+option`.

    Args:
      text: the flag's value.
      loops: the names of loops that are allowed.
      options: the names of options that are allowed.

    Raises:
      UsageError: an arm is malformed or named twice.
    """
    arms: list[Arm] = []
    for word in text.split(","):
        head, *chosen = word.strip().split("+")
        loop, _, precision = head.partition(":")
        arm = Arm(loop, precision, tuple(chosen))
        if (
            loop not in loops
            or precision not in choices.PRECISIONS
            or not set(chosen) <= set(options)
        ):
            form = "loop:precision+option" if options else "loop:precision"
            allowed = (
                f"loops: {', '.join(loops)}; "
                f"precisions: {', '.join(choices.PRECISIONS)}"
            )
            if options:
                allowed += f"; options: {', '.join(options)}"
            raise errors.UsageError(
                f"--arms ({text}) must be comma-separated {form}, not '{word}'; "
                f"{allowed}."
            )
        if arm in arms:
            raise errors.UsageError(f"--arms ({text}) names {arm.name} twice.")
        arms.append(arm)
    return arms
