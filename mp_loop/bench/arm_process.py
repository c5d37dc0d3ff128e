"""One arm of the benchmark in a process of its own.

    process = ArmProcess("custom:bfloat16", task)     # returns when it is warm
    process.facts                                     # memory, graph, start-up times
    process.time(100)                                 # seconds of a block of steps
    process.close()

The process (`python -m mp_loop.bench.arm_process TASK`) reads numbers of steps, one per
line, and answers each with a line of JSON. It imports only the framework of its arm.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from mp_loop.bench import memory, workloads
from mp_loop.hardware import startup


class ArmFailed(RuntimeError):
    """An arm's process ended; the message holds the last line it wrote."""


class ArmProcess:
    """A running arm, seen from the benchmark.

    Attributes:
      name: of the arm.
      facts: what it measured when it started, by the names of benchmark.json.
    """

    def __init__(self, name: str, task: Mapping[str, Any]):
        """Starts the process, and waits until it is warm.

        Args:
          name: of the arm, for messages.
          task: what `serve` takes.

        Raises:
          ArmFailed: the arm cannot be built.
        """
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mp_loop.bench.arm_process", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.facts = self._read()

    def time(self, steps: int) -> float:
        """Returns the seconds that a block of steps takes."""
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._read()["seconds"]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        _, said = self._process.communicate()
        last = (said.strip().splitlines() or ["nothing"])[-1]
        code = self._process.returncode
        raise ArmFailed(f"{self.name} ended with {code}: {last}")


def serve(task: Mapping[str, Any]) -> None:
    """Builds an arm, then runs the blocks that stdin asks for.

    Args:
      task: `loop`, `precision`, `options`, `workload` and `batch_size`.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer

    def answer(values: Mapping[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    keras_float16 = task["loop"] in ("keras", "fit") and task["precision"] == "float16"
    startup.prefer_onednn(unless=keras_float16)
    if task["loop"] == "torch":
        from mp_loop.bench import torch_loop

        framework, make = "torch", torch_loop.make
    else:
        from mp_loop.bench import keras_loops

        framework, make = "tensorflow", keras_loops.make
    used = memory.of_framework(framework)
    imported = used.held()
    program = make(**task)
    answer(_warm_up(program, used, imported))
    for line in sys.stdin:
        answer({"seconds": _seconds(program, int(line))})


def _warm_up(
    program: workloads.Program, used: memory.Memory, imported: int
) -> dict[str, Any]:
    """Runs the first steps.

    Args:
      program: the arm.
      used: the memory it computes in.
      imported: bytes held when the framework was imported.

    Returns:
      What was measured.
    """
    first_step_seconds = _seconds(program, 1)
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
    }
    if isinstance(used, memory.TensorFlowMemory):
        facts["host_copies_in_three_steps"] = memory.host_copies(program.run)
    return facts


def _seconds(program: workloads.Program, steps: int) -> float:
    started = time.perf_counter()
    program.run(steps)
    return time.perf_counter() - started


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
