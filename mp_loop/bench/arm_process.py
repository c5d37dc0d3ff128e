"""One arm of the benchmark in a process of its own, and its parent's end.

    arm = Worker("custom:bfloat16", task)     # starts it, waits until it is warm
    arm.facts                                 # memory, graph, times of the start
    arm.time(100)                             # seconds that a block of steps takes
    arm.close()

The process reads a number of steps a line, and answers each with a line of JSON. It
imports the framework of its arm alone.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from mp_loop.hardware import environment, startup


def work(task: Mapping[str, Any]) -> None:
    """Builds an arm, then runs the blocks that stdin asks for.

    Args:
      task: `loop`, `precision`, `options`, `workload` and `batch_size`.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    keras_float16 = task["loop"] in ("keras", "fit") and task["precision"] == "float16"
    startup.prefer_onednn(unless=keras_float16)
    if task["loop"] == "torch":
        pass
    else:
        from mp_loop.bench import keras_loops
    on_device = keras_loops.DeviceMemory.exists()
    memory = keras_loops.DeviceMemory() if on_device else HostMemory()
    memory.start()
    program = keras_loops.make(**task)
    run = program.run
    started = time.perf_counter()
    run(1)
    facts = {
        "graph_nodes": program.graph_nodes,
        "trace_seconds": program.trace_seconds,
        "first_step_seconds": time.perf_counter() - started,
    }
    at_rest = memory.held()
    memory.reset_peak()
    for _ in range(2):
        run(3)
    peak = memory.peak()
    if on_device and task["loop"] != "torch":
        facts["host_copies_in_three_steps"] = keras_loops.host_copies(run)
    answer(step_bytes=peak - at_rest, process_bytes=peak - memory.base, **facts)
    for line in sys.stdin:
        count = int(line)
        started = time.perf_counter()
        run(count)
        answer(seconds=time.perf_counter() - started)


class HostMemory:
    """The resident memory of this process, in bytes."""

    base = 0

    def start(self) -> None:
        """Counts from here: the framework is imported, nothing is built."""
        self.base = self.held()

    def held(self) -> int:
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def reset_peak(self) -> None:
        pathlib.Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        return environment.peak_memory_bytes()


class Worker:
    """The parent's end of a worker."""

    def __init__(self, name: str, task: Mapping[str, Any]):
        """Starts the process, and waits until it is warm.

        Args:
          name: of the arm, for messages.
          task: what `work` takes.

        Raises:
          WorkerFailed: the arm cannot be built.
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
        raise WorkerFailed(f"{self.name} ended with {code}: {last}")


class WorkerFailed(RuntimeError):
    """An arm's process ended; the message is what it said last."""


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
