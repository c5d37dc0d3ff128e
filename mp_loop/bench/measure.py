"""Measures the arms of a workload side by side.

    results = measure("resnet20", arms, BenchmarkPlan(repeats=7, block_seconds=1.0))
    results["custom:bfloat16"]["time_ratio"]["median"]

Every arm is a process of its own. In each round every arm runs one block of steps, so
that a machine whose speed drifts does not distort the ratios.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mp_loop.bench import arm_process, workloads
from mp_loop.config import comparison_arms
from mp_loop.rendering import numbers

MIB = 2.0**20

_SHORTEST_BLOCK = 3  # steps


@dataclasses.dataclass(frozen=True)
class BenchmarkPlan:
    """How to measure.

    Attributes:
      repeats: rounds.
      block_seconds: about what a block of an arm takes in a round.
      memory_budget_mib: MiB that a step may take; 0: no limit.
      same_memory: a step may take what the first arm's step takes.
    """

    repeats: int
    block_seconds: float
    memory_budget_mib: float = 0.0
    same_memory: bool = False


def measure(
    workload: str,
    arms: Sequence[comparison_arms.Arm],
    plan: BenchmarkPlan,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, Any]]:
    """Measures the arms of one workload.

    Args:
      workload: a key of `workloads.WORKLOADS`.
      arms: what to measure; ratios are to the first.
      plan: how to measure.
      say: is told what is going on.

    Returns:
      For each arm by name its figures, or `{"failed": why}`.
    """
    results: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        running: list[tuple[arm_process.ArmProcess, int]] = []
        for arm in arms:
            say(f"{workload}, {arm.name}: starting")
            try:
                process, batch_size = _start_largest(arm, workload, plan)
            except arm_process.ArmFailed as error:
                say(str(error))
                results[arm.name] = {"failed": str(error)}
                continue
            stack.callback(process.close)
            if plan.same_memory and not running:
                budget = process.facts["step_bytes"] / MIB
                plan = dataclasses.replace(plan, memory_budget_mib=budget)
            figures = {"batch_size": batch_size, **process.facts, "blocks": []}
            results[arm.name] = figures
            trial = process.time(_SHORTEST_BLOCK) / _SHORTEST_BLOCK
            steps = max(_SHORTEST_BLOCK, round(plan.block_seconds / trial))
            running.append((process, steps))
        for number in range(plan.repeats):
            say(f"{workload}: round {number + 1} of {plan.repeats}")
            for process, steps in running:
                seconds = process.time(steps) / steps
                results[process.name]["blocks"].append(seconds)
    summarize(results)
    return results


def _start_largest(
    arm: comparison_arms.Arm, workload: str, plan: BenchmarkPlan
) -> tuple[arm_process.ArmProcess, int]:
    """Starts an arm with the largest batch that the plan allows; and that batch."""
    batch_size = workloads.WORKLOADS[workload].batch_size
    if plan.memory_budget_mib:
        batch_size = largest_batch(
            lambda size: _step_mib(arm, workload, size),
            plan.memory_budget_mib,
            batch_size,
        )
    return _start(arm, workload, batch_size), batch_size


def _start(
    arm: comparison_arms.Arm, workload: str, batch_size: int
) -> arm_process.ArmProcess:
    task = {**dataclasses.asdict(arm), "workload": workload, "batch_size": batch_size}
    return arm_process.ArmProcess(arm.name, task)


def _step_mib(arm: comparison_arms.Arm, workload: str, batch_size: int) -> float:
    process = _start(arm, workload, batch_size)
    process.close()
    return process.facts["step_bytes"] / MIB


def largest_batch(
    step_mib: Callable[[int], float], budget_mib: float, start: int
) -> int:
    """Finds about the largest batch whose step fits into a budget.

    Args:
      step_mib: measures the memory of a step with a batch of this size, in MiB; grows
        about linearly.
      budget_mib: what it may be.
      start: a batch to begin with.

    Returns:
      A batch that fits, where one that is larger by a sixteenth, or by one, does not;
      1 where none fits.
    """
    fits, too_large = 0, 0
    size = start
    while not too_large or too_large - fits > max(1, fits // 16):
        if step_mib(size) <= budget_mib:
            fits = size
        else:
            too_large = size
        size = (fits + too_large) // 2 if too_large else 2 * fits
        if size == 0:
            return 1
    return fits


def summarize(results: Mapping[str, dict[str, Any]]) -> None:
    """Adds medians, and ratios to the first arm that did not fail."""
    done = [result for result in results.values() if "failed" not in result]
    for result in done:
        first = done[0]
        seconds = statistics.median(result["blocks"])
        per_example = [s / result["batch_size"] for s in result["blocks"]]
        first_per_example = [s / first["batch_size"] for s in first["blocks"]]
        result["milliseconds_per_step"] = seconds * 1e3
        result["examples_per_second"] = result["batch_size"] / seconds
        result["time_ratio"] = numbers.spread(
            [a / b for a, b in zip(per_example, first_per_example, strict=True)]
        )
        for name in ("step_bytes", "process_bytes"):
            result[f"{name}_ratio"] = result[name] / first[name]
