"""What the benchmark can measure: its loops and their options, on which workloads.

    arms = parse_arms("keras:float32,custom:bfloat16+recompute")
    names = parse_workloads("resnet20,vit", arms)

Both take the value of the flag of that name.
"""

from __future__ import annotations

from collections.abc import Sequence

from mp_loop.bench import workloads
from mp_loop.config import comparison_arms, errors

DEFAULT_ARMS = "keras:float32,keras:bfloat16,custom:bfloat16,floor:bfloat16"

_OURS = ("xla", "recompute", "tf32")
_OPTIONS = {
    "custom": _OURS,
    "keras": ("xla", "tf32"),
    "fit": ("xla", "tf32"),
    "unscaled": _OURS,
    "floor": _OURS,
    "torch": ("compile", "tf32"),
    "stream": (),
}
_UPDATE = ("custom", "keras", "stream")


def parse_arms(text: str) -> list[comparison_arms.Arm]:
    """Reads `--arms`.

    Raises:
      UsageError: an arm is malformed, named twice, or has an option that its loop does
        not take.
    """
    known = dict.fromkeys(option for taken in _OPTIONS.values() for option in taken)
    arms = comparison_arms.parse(text, tuple(_OPTIONS), tuple(known))
    for arm in arms:
        taken = _OPTIONS[arm.loop]
        for option in arm.options:
            if option not in taken:
                told = ", ".join(f"+{name}" for name in taken) or "no options"
                raise errors.UsageError(
                    f"--arms ({text}): {arm.loop} takes {told}; not '+{option}'."
                )
    return arms


def parse_workloads(text: str, arms: Sequence[comparison_arms.Arm]) -> list[str]:
    """Reads `--workloads`.

    Raises:
      UsageError: a workload is unknown, or an arm cannot run it.
    """
    names = [word.strip() for word in text.split(",")]
    for name in names:
        if name not in workloads.WORKLOADS:
            known = ", ".join(workloads.WORKLOADS)
            raise errors.UsageError(
                f"--workloads ({text}) must be among: {known}; not '{name}'."
            )
        for arm in arms:
            if not _runs(workloads.WORKLOADS[name], arm):
                raise errors.UsageError(
                    f"--workloads ({text}): {name} does not run on {arm.name}."
                )
    return names


def _runs(workload: workloads.Workload, arm: comparison_arms.Arm) -> bool:
    """Whether a workload runs on an arm."""
    if workload.is_update:
        return arm.loop in _UPDATE and not arm.options
    if arm.loop == "torch":
        return workload.has_peer
    return arm.loop != "stream"
