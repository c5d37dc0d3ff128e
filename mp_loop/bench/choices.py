"""What the benchmark can measure: its loops and their options, on which workloads.

    arms = parse_arms("keras:float32,custom:bfloat16+recompute")
    names = parse_workloads("resnet20,vit", arms)

Both take the value of the flag of that name.
"""

from __future__ import annotations

from collections.abc import Sequence

from mp_loop.bench import workloads
from mp_loop.config import comparison_arms, errors

LOOPS = ("custom", "keras", "fit", "unscaled", "floor", "torch", "stream")
OPTIONS = ("xla", "recompute", "tf32")
DEFAULT_ARMS = "keras:float32,keras:bfloat16,custom:bfloat16,floor:bfloat16"

_RECOMPUTE = ("custom", "unscaled", "floor")
_UPDATE = ("custom", "keras", "stream")


def parse_arms(text: str) -> list[comparison_arms.Arm]:
    """Reads `--arms`.

    Raises:
      UsageError: an arm is malformed, named twice, or has an option that its loop does
        not take.
    """
    arms = comparison_arms.parse(text, LOOPS, OPTIONS)
    for arm in arms:
        if "recompute" in arm.options and arm.loop not in _RECOMPUTE:
            raise errors.UsageError(f"--arms ({text}): {arm.loop} cannot recompute.")
        if arm.loop == "torch" and arm.options:
            raise errors.UsageError(f"--arms ({text}): torch takes no options.")
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
