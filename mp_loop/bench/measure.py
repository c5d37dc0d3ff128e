"""Measures the arms of a workload side by side.

    results = measure("resnet20", arms, BenchmarkPlan(repeats=7, block_seconds=1.0))
    results["custom:bfloat16"]["time_ratio"]["median"]

Every arm is a process of its own. In each round every arm runs one block of steps, so
that a machine whose speed drifts does not distort the ratios.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from mp_loop.bench import arm_process, tasks, workloads
from mp_loop.config import comparison_arms, json_values
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
      batch_size: examples of a step; 0: those of the workload.
      on_gpu: whether the workload's are those of a GPU.
      on_device: whether batches wait on the GPU.
      together: whether arms start side by side, all with the same batch.
      start_seconds: after which an arm that is not warm is given up; 0: never.
    """

    repeats: int
    block_seconds: float
    memory_budget_mib: float = 0.0
    same_memory: bool = False
    batch_size: int = 0
    on_gpu: bool = False
    on_device: bool = False
    together: bool = False
    start_seconds: float = 0.0

    def task(
        self, arm: comparison_arms.Arm, workload: workloads.Workload
    ) -> tasks.Task:
        """Returns what a process has to do; the batch is that to begin with."""
        size = workload.gpu_batch_size if self.on_gpu else 0
        if not workload.is_update:
            size = self.batch_size or size
        size = size or workload.batch_size
        return tasks.Task(arm, workload, size, self.on_device, self.start_seconds)


def measure(
    name: str,
    workload: workloads.Workload,
    arms: Sequence[comparison_arms.Arm],
    plan: BenchmarkPlan,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, json_values.Json]]:
    """Measures the arms of one workload.

    Args:
      name: of the workload, for messages.
      workload: what is trained.
      arms: what to measure; ratios are to the first.
      plan: how to measure.
      say: is told what is going on.

    Returns:
      For each arm by name its figures, or `{"failed": why}`.
    """
    results: dict[str, dict[str, json_values.Json]] = {}
    recorded = functools.partial(_recorded, results, say)
    with contextlib.ExitStack() as stack:

        def begin(task: tasks.Task) -> arm_process.ArmProcess:
            process = arm_process.ArmProcess(task)
            return stack.enter_context(contextlib.closing(process))

        begun = [begin(plan.task(arm, workload)) for arm in arms if plan.together]
        running: list[arm_process.ArmProcess] = []
        for place, arm in enumerate(arms):
            say(f"{name}, {arm.name}: starting")
            with recorded(arm.name):
                if begun:
                    process = begun[place]
                else:
                    process = begin(_largest(arm, workload, plan))
                process.wait_until_warm()
                if plan.same_memory and not running:
                    budget = process.facts["step_bytes"] / MIB
                    plan = dataclasses.replace(plan, memory_budget_mib=budget)
                batch_size = {"batch_size": process.task.batch_size}
                results[arm.name] = {**batch_size, **process.facts, "blocks": []}
                running.append(process)
        steps: dict[str, int] = {}
        for process in running:
            with recorded(process.name):
                trial = process.time(_SHORTEST_BLOCK) / _SHORTEST_BLOCK
                count = max(_SHORTEST_BLOCK, round(plan.block_seconds / trial))
                steps[process.name] = count
        for number in range(plan.repeats):
            say(f"{name}: round {number + 1} of {plan.repeats}")
            for process in running:
                if "failed" not in results[process.name]:
                    with recorded(process.name):
                        count = steps[process.name]
                        seconds = process.time(count) / count
                        results[process.name]["blocks"].append(seconds)
    summarize(results)
    return results


@contextlib.contextmanager
def _recorded(
    results: dict[str, dict[str, json_values.Json]],
    say: Callable[[str], None],
    name: str,
) -> Iterator[None]:
    """Inside, why an arm fails becomes its result."""
    try:
        yield
    except arm_process.ArmFailed as error:
        say(str(error))
        results[name] = {"failed": str(error)}


def _largest(
    arm: comparison_arms.Arm, workload: workloads.Workload, plan: BenchmarkPlan
) -> tasks.Task:
    """The task of an arm with the largest batch that the plan allows."""
    task = plan.task(arm, workload)
    if not plan.memory_budget_mib:
        return task

    def with_batch(size: int) -> tasks.Task:
        return dataclasses.replace(task, batch_size=size)

    def step_mib(size: int) -> float:
        process = arm_process.ArmProcess(with_batch(size))
        with contextlib.closing(process):
            process.wait_until_warm()
            return process.facts["step_bytes"] / MIB

    size = largest_batch(step_mib, plan.memory_budget_mib, task.batch_size)
    return with_batch(size)


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


def summarize(results: Mapping[str, dict[str, json_values.Json]]) -> None:
    """Adds medians, and ratios to the first arm that did not fail.

    A ratio to no memory at all is None.
    """
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
        for name in ("step_bytes", "process_bytes", "allocated_bytes"):
            ours, theirs = result.get(name), first.get(name)
            # None is not counted; a tiny step may find room in what is held
            nothing = ours is None or not theirs
            result[f"{name}_ratio"] = None if nothing else ours / theirs
