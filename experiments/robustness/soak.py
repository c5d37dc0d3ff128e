"""A long run, watched: memory, traces, open files, threads, size of the records.

    python experiments/robustness/soak.py --output_dir=runs/soak --minutes=240

All flags of `mp_loop.train` may follow; with --minutes the run ends at --steps or after
so long, whichever is first. Prints a table; exit code 1 if anything grew.
"""

import os
import pathlib
import signal
import sys
import time

from absl import flags

from mp_loop.cli import app
from mp_loop.config import settings
from mp_loop.run import build

WATCHED = 20  # rows of the table
# The scale grows often: a step is skipped every 500 to 1,000.
DEFAULTS = (
    "--model=mlp", "--batch_size=32", "--steps=100000000", "--steps_per_call=50",
    "--log_every=100", "--eval_every=5000", "--checkpoint_every=1000",
    "--inspect_every=10000", "--precision=float16", "--growth_interval=500",
)  # fmt: skip
COLUMNS = {
    "minutes": "{:.1f}",
    "step": "{}",
    "skipped": "{}",
    "memory, MiB": "{:.0f}",
    "traces": "{}",
    "open files": "{}",
    "threads": "{}",
    "checkpoints, MiB": "{:.1f}",
    "metrics.jsonl, bytes/step": "{:.2f}",
    "tensorboard, bytes/step": "{:.2f}",
}
# In the second half of the run, times the largest of the first.
ALLOWED = {
    "memory, MiB": 1.02,
    "traces": 1.0,
    "open files": 1.0,
    "threads": 1.0,
    "checkpoints, MiB": 1.5,  # Two or three: the best, or one being written.
}


def resident() -> float:
    """MiB of memory that this process holds now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def size(folder: pathlib.Path) -> float:
    """MiB of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # An old checkpoint, removed by its thread.
            continue
    return total / 2**20


class Watch:
    """Measures the process at equal distances, of steps or of time."""

    def __init__(self, folder: str, step: object, end: int, first: int, minutes: float):
        """Takes the run folder, the step, its end, where to begin, and the time."""
        self.rows: list[dict[str, float]] = []
        self._folder, self._step = pathlib.Path(folder), step
        self._end, self._first = end, first
        self._began, self._seconds = time.monotonic(), minutes * 60

    def __call__(self, line: dict) -> None:
        """Adds a row if one is due; `line` is one of metrics or of an evaluation."""
        # After the first epoch, which builds everything.
        if "loss" not in line or line["step"] < self._first:
            return
        done = (line["step"] - self._first) / self._end
        if self._seconds:
            done = max(done, (time.monotonic() - self._began) / self._seconds)
        if done * WATCHED >= len(self.rows):
            self.rows.append(self._measure(line))
            values = self.rows[-1].items()
            cells = [COLUMNS[name].format(value) for name, value in values]
            print(f"| {' | '.join(cells)} |", flush=True)

    def out_of_time(self) -> int:
        """The signal that ends the run once its minutes are over, else 0."""
        over = time.monotonic() - self._began > self._seconds > 0
        return signal.SIGTERM if over else 0

    def _measure(self, line: dict) -> dict[str, float]:
        values = (
            (time.monotonic() - self._began) / 60,
            line["step"],
            line["skipped_steps"],
            resident(),
            self._step._run.experimental_get_tracing_count(),
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")),
            size(self._folder / "checkpoints"),
            (self._folder / "metrics.jsonl").stat().st_size / line["step"],
            size(self._folder / "tensorboard") * 2**20 / line["step"],
        )
        return dict(zip(COLUMNS, values, strict=True))

    def grew(self) -> list[str]:
        """The names of what was larger in the second half of the run."""
        middle = len(self.rows) // 2
        return [
            name
            for name, allowed in ALLOWED.items()
            if max(row[name] for row in self.rows[middle:])
            > max(row[name] for row in self.rows[:middle]) * allowed
        ]


def run(config: settings.Config, flag_values: flags.FlagValues) -> int:
    """Trains and watches; returns the exit code."""
    built = build.from_settings(config)
    from mp_loop.run import loop, session

    watch = Watch(
        config.records.output_dir,
        built.step,
        built.total_steps,
        built.steps_per_epoch,
        flag_values.minutes,
    )
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"|{' --- |' * len(COLUMNS)}", flush=True)
    with session.Session(built) as current:
        current.begin()
        try:
            step = current.train(watch, watch.out_of_time).steps
        except loop.Interrupted as stop:
            step = stop.step
        accuracy = current.experiment.evaluate()["eval_accuracy"]
    print(f"ended at step {step}, accuracy {accuracy:.4f}")
    grew = watch.grew()
    print("grew:", ", ".join(grew) or "nothing")
    return int(bool(grew))


def declare(flag_values: flags.FlagValues) -> None:
    """Declares the time."""
    flags.DEFINE_float(
        "minutes", 0.0, "End after so long; 0: at --steps.", flag_values=flag_values
    )


if __name__ == "__main__":
    sys.argv[1:1] = DEFAULTS
    app.main(run, declare)
