"""One arm of the benchmark in a process of its own.

    process = ArmProcess(task)            # returns at once
    process.wait_until_warm()
    process.facts                         # memory, graph, start-up times
    process.time(100)                     # seconds of a block of steps
    process.close()

The process (`python -m mp_loop.bench.arm_process TASK`) reads numbers of steps, one per
line, and answers each with a line of JSON. It imports only the framework of its arm.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from mp_loop.bench import memory, tasks, workloads
from mp_loop.config import json_values
from mp_loop.hardware import startup


class ArmFailed(RuntimeError):
    """An arm's process ended; the message holds the last line it wrote."""


class ArmProcess:
    """A running arm, seen from the benchmark.

    Attributes:
      task: what it does.
      name: of the arm.
      facts: what it measured when it started, by the names of benchmark.json; empty
        until it is warm.
    """

    def __init__(self, task: tasks.Task):
        """Starts the process."""
        self.task = task
        self.name = task.arm.name
        self.facts: dict[str, json_values.Json] = {}
        self._started = time.monotonic()
        with contextlib.ExitStack() as stack:
            # Not a pipe: it would be full before anyone reads it.
            self._log = stack.enter_context(
                tempfile.TemporaryFile("w+", errors="replace")
            )
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mp_loop.bench.arm_process", task.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                # Otherwise the first arm takes all of a GPU's memory.
                env={"TF_FORCE_GPU_ALLOW_GROWTH": "true", **os.environ},
            )
            self._open = stack.pop_all()

    def wait_until_warm(self) -> None:
        """Waits until the first steps are done.

        Raises:
          ArmFailed: the arm cannot be built, or takes longer than the task allows.
        """
        limit = self.task.start_seconds
        left = max(self._started + limit - time.monotonic(), 0.0)
        if limit and not select.select([self._process.stdout], [], [], left)[0]:
            self._process.kill()  # others may be starting
            raise ArmFailed(f"{self.name} was not warm after {limit:g} s")
        self.facts = self._read()

    def time(self, steps: int) -> float:
        """Returns the seconds that a block of steps takes.

        Raises:
          ArmFailed: the process has ended.
        """
        with contextlib.suppress(BrokenPipeError):  # there is no answer then
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        return self._read()["seconds"]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._open.close()

    def _read(self) -> dict[str, json_values.Json]:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._log.seek(0)
        last = (self._log.read().strip().splitlines() or ["nothing"])[-1]
        raise ArmFailed(f"{self.name} ended with {code}: {last}")


def serve(task: tasks.Task) -> None:
    """Builds an arm, then runs the blocks that stdin asks for."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer

    def answer(values: json_values.Object) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    arm = task.arm
    keras_float16 = arm.loop in ("keras", "fit") and arm.precision == "float16"
    startup.prefer_onednn(unless=keras_float16)
    if arm.loop == "torch":
        from mp_loop.bench import torch_loop

        framework, make = "torch", torch_loop.make
    else:
        from mp_loop.bench import keras_loops

        framework, make = "tensorflow", keras_loops.make
    used = memory.of_framework(framework)
    program, facts = warm_up(lambda small_first: make(task, small_first), used)
    if not used.falls:
        facts["allocated_bytes"] = memory.allocated(program.run, framework)
    answer(facts)
    for line in sys.stdin:
        answer({"seconds": _seconds(program, int(line))})


def warm_up(
    make: Callable[[bool], workloads.Program], used: memory.Memory
) -> tuple[workloads.Program, dict[str, json_values.Json]]:
    """Builds an arm and runs its first steps.

    Where freed memory stays with the process, the first step is on a single example:
    what it holds afterwards is what a step does not add.

    Args:
      make: builds it, given whether the first step is on a single example.
      used: the memory it computes in.

    Returns:
      The arm, and what was measured.
    """
    imported, started = used.held(), time.perf_counter()
    program = make(not used.falls)
    first_step_seconds = _seconds(program, 1)
    until_first_step_seconds = time.perf_counter() - started
    at_rest = used.held()
    used.reset_peak()
    for _ in range(2):
        program.run(3)
    peak = used.peak()
    facts = {
        "step_bytes": peak - at_rest,
        "process_bytes": peak - imported,
        "graph_nodes": program.graph_nodes,
        "trace_seconds": program.trace_seconds,
        "first_step_seconds": first_step_seconds,
        "until_first_step_seconds": until_first_step_seconds,
    }
    if isinstance(used, memory.TensorFlowMemory):
        facts["host_copies_in_three_steps"] = memory.host_copies(program.run)
    return program, facts


def _seconds(program: workloads.Program, steps: int) -> float:
    started = time.perf_counter()
    program.run(steps)
    return time.perf_counter() - started


if __name__ == "__main__":
    serve(tasks.Task.from_json(sys.argv[1]))
