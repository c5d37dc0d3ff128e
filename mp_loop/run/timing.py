"""How long steps take, tracing and compilation apart."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator

from mp_loop.run import records

_OF_A_PROCESS = (
    "train_seconds",
    "examples_per_second",
    "milliseconds_per_step",
    "peak_memory_bytes",
)


class StepTimer:
    """Seconds of training; a window is what lies between two lines of metrics.

    Attributes:
      seconds: of all closed windows.
    """

    def __init__(self, batch_size: int, clock: Callable[[], float] = time.perf_counter):
        """Takes the examples of one step, and what returns the time in seconds."""
        self.seconds = 0.0
        self._batch_size, self._clock = batch_size, clock
        self._seconds_per_step: list[float] = []  # of each window
        self._window_seconds, self._window_steps = 0.0, 0

    @contextlib.contextmanager
    def window(self, steps: int) -> Iterator[None]:
        """Times a call of so many steps."""
        started = self._clock()
        yield
        self._window_seconds += self._clock() - started
        self._window_steps += steps

    def close_window(self) -> float:
        """Returns the examples per second since the last line."""
        self.seconds += self._window_seconds
        self._seconds_per_step.append(self._window_seconds / self._window_steps)
        self._window_seconds, self._window_steps = 0.0, 0
        return self._batch_size / self._seconds_per_step[-1]

    @property
    def seconds_per_step(self) -> float:
        """The median over the windows; the first, which compiles, counts if alone."""
        times = self._seconds_per_step
        return statistics.median(times[1:] or times or [float("nan")])

    @property
    def examples_per_second(self) -> float:
        """The same as throughput."""
        return self._batch_size / self.seconds_per_step


def of_earlier_processes(
    output_dir: str | os.PathLike[str], batch_size: int
) -> dict[str, float]:
    """Returns how long a finished run took, for a process that took no step of it.

    They are those of its summary, or, if no process came to write one, what its lines
    of metrics say; empty where nothing says it.
    """
    summary, _ = records.summary_and_damage(output_dir)
    if summary.get("train_seconds"):
        return {name: summary[name] for name in _OF_A_PROCESS if name in summary}
    lines = records.read(output_dir, records.METRICS_FILE).lines
    rated = [line for line in lines if line.get("examples_per_second")]
    if not rated:
        return {}
    steps = [
        b["step"] - a["step"]
        for a, b in zip([{"step": 0}, *rated], rated, strict=False)
    ]
    speeds = [line["examples_per_second"] for line in rated]
    speed = statistics.median(speeds[1:] or speeds)
    seconds = sum(n * batch_size / v for n, v in zip(steps, speeds, strict=True))
    return {
        "train_seconds": seconds,
        "examples_per_second": speed,
        "milliseconds_per_step": batch_size / speed * 1e3,
    }
