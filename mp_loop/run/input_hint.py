"""What to do where a run waits much for its data."""

from __future__ import annotations

from collections.abc import Iterable

from mp_loop.config import json_values

_LARGE = 0.2  # of the time


def is_large(share: float | None) -> bool:
    """Tells whether a share of the time is worth a word."""
    return share is not None and share > _LARGE


def text(lines: Iterable[json_values.Object]) -> str:
    """Says what to do; '' where there is no need.

    Args:
      lines: of metrics, of a run.
    """
    share = mean_share(lines)
    if not is_large(share):
        return ""
    return (
        f"Steps waited for data {share:.0%} of their time. Data held in memory come "
        "sooner (--max_data_gib), and so do smaller photos, less augmentation, and "
        "more cores."
    )


def mean_share(lines: Iterable[json_values.Object]) -> float | None:
    """Returns the share of the time of a whole run; None where no line has one."""
    total, before, waited = 0, 0, 0.0
    for line in lines:
        steps, before = line["step"] - before, line["step"]
        if line.get("input_wait") is not None and steps > 0:
            total, waited = total + steps, waited + steps * line["input_wait"]
    return waited / total if total else None
