"""Measures time and memory of a training step, arm beside arm.

    python -m mp_loop.benchmark --workloads=resnet20 \
        --arms=keras:float32,keras:bfloat16,custom:bfloat16 --output_dir=runs/speed

Every arm lives in a process of its own. After warm-up the arms take turns: in each
of --repeats rounds every arm runs one block of steps of about --block_seconds, and
waits for the device once, at its end. A ratio is the median over rounds of an
arm's time divided by that of the first arm in the same round, so that a machine
whose speed drifts does not distort it. Use an otherwise idle machine.

An arm is loop:precision, with options after plus signs (custom:bfloat16+recompute):

    keras    Keras' mixed policy, in float16 with LossScaleOptimizer
    fit      the same through model.fit
    custom   mp_loop
    unscaled custom without scale, check and skip
    floor    forward and backward of custom alone
    torch    PyTorch: autocast, GradScaler, channels last (needs the extra `peers`)
    stream   workloads update20 and update400: reads and writes what an update must
    +xla, +recompute, +tf32 (float32 is strict without it)

Memory is what one call of steps adds at its peak: "of a step" to the process after
a step on a single example, "in all" to the process with the framework just
imported; on a GPU, to what is held there. With --memory_budget_mib every arm runs
with the largest batch whose step fits; with --same_memory, with the largest whose
step fits into that of the first arm.

`--output_dir` gets benchmark.md, benchmark.json and benchmark.png. Exit codes: 0
done, 1 an arm failed, 2 bad input (one line on stderr, nothing written).
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from mp_loop.bench import arm_process, workloads
from mp_loop.cli import app
from mp_loop.config import choices, errors, settings
from mp_loop.hardware import environment
from mp_loop.run import record

LOOPS = ("custom", "keras", "fit", "unscaled", "floor", "torch", "stream")
OPTIONS = ("xla", "recompute", "tf32")
DEFAULT_ARMS = "keras:float32,keras:bfloat16,custom:bfloat16,floor:bfloat16"

MIB = 2.0**20


@dataclasses.dataclass(frozen=True)
class Arm:
    """One thing that is measured."""

    loop: str
    precision: str
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As in `--arms`."""
        return "+".join((f"{self.loop}:{self.precision}", *self.options))


def parse_arms(text: str) -> list[Arm]:
    """Reads `--arms`.

    Raises:
      UsageError: an arm is malformed, named twice, or asks for what it lacks.
    """
    arms = []
    for word in text.split(","):
        head, *options = word.strip().split("+")
        loop, _, precision = head.partition(":")
        arm = Arm(loop, precision, tuple(options))
        if (
            loop not in LOOPS
            or precision not in choices.PRECISIONS
            or not set(options) <= set(OPTIONS)
        ):
            raise errors.UsageError(
                f"--arms ({text}) must be loop:precision with options after plus "
                f"signs, parted by commas, not '{word}'; loops: {', '.join(LOOPS)}; "
                f"precisions: {', '.join(choices.PRECISIONS)}; options: "
                f"{', '.join(OPTIONS)}."
            )
        if "recompute" in options and loop not in ("custom", "unscaled", "floor"):
            raise errors.UsageError(f"--arms ({text}): {loop} cannot recompute.")
        if loop == "torch" and options:
            raise errors.UsageError(f"--arms ({text}): torch takes no options.")
        if arm in arms:
            raise errors.UsageError(f"--arms ({text}) names {arm.name} twice.")
        arms.append(arm)
    return arms


def parse_workloads(text: str, arms: Sequence[Arm]) -> list[str]:
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
        updates = workloads.WORKLOADS[name].is_update
        can = ("custom", "keras", "stream") if updates else set(LOOPS) - {"stream"}
        if not workloads.WORKLOADS[name].has_peer:
            can -= {"torch"}
        for arm in arms:
            if arm.loop not in can or (updates and arm.options):
                raise errors.UsageError(
                    f"--workloads ({text}): {name} does not run on {arm.name}."
                )
    return names


def declare(flag_values: flags.FlagValues) -> None:
    """Declares the flags of this command; it has none of an experiment."""
    text = ", ".join(workloads.WORKLOADS)
    flags.DEFINE_string(
        "workloads", "resnet20", f"Among: {text}.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "arms",
        DEFAULT_ARMS,
        "Arms; ratios are to the first.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "repeats", 7, "Rounds.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_float(
        "block_seconds",
        1.0,
        "Length of a block; at least three steps.",
        lower_bound=0.0,
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "memory_budget_mib",
        0.0,
        "Give every arm the largest batch whose step fits; 0: equal batches.",
        lower_bound=0.0,
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "same_memory",
        False,
        "Give every arm the largest batch whose step fits into the first arm's memory.",
        flag_values=flag_values,
    )
    flags.DEFINE_string("output_dir", "", "Folder (required).", flag_values=flag_values)


def measure(
    workload: str,
    arms: Sequence[Arm],
    repeats: int,
    block_seconds: float,
    memory_budget_mib: float = 0.0,
    same_memory: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, Any]]:
    """Measures the arms of one workload.

    Args:
      workload: a key of `workloads.WORKLOADS`.
      arms: what to measure; ratios are to the first.
      repeats: rounds.
      block_seconds: about what a block of an arm takes.
      memory_budget_mib: MiB that a step may take; 0: no matter.
      same_memory: a step may take what the first arm's does.
      say: told what is going on.

    Returns:
      For each arm by name its figures, or `{"failed": why}`.
    """
    size = workloads.WORKLOADS[workload].batch_size
    results: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        running: list[tuple[arm_process.Worker, int]] = []
        for arm in arms:
            say(f"{workload}, {arm.name}: starting")
            try:
                batch_size = size
                if memory_budget_mib:
                    batch_size = largest_batch(
                        lambda n, arm=arm: _step_mib(arm, workload, n),
                        memory_budget_mib,
                        size,
                    )
                process = _start(arm, workload, batch_size)
                if same_memory and not running:
                    memory_budget_mib = process.facts["step_bytes"] / MIB
            except arm_process.WorkerFailed as error:
                say(str(error))
                results[arm.name] = {"failed": str(error)}
                continue
            stack.callback(process.close)
            results[arm.name] = {
                "batch_size": batch_size,
                **process.facts,
                "blocks": [],
            }
            trial = process.time(3) / 3
            running.append((process, max(3, round(block_seconds / trial))))
        for number in range(repeats):
            say(f"{workload}: round {number + 1} of {repeats}")
            for process, steps in running:
                seconds = process.time(steps) / steps
                results[process.name]["blocks"].append(seconds)
    summarize(results)
    return results


def _start(arm: Arm, workload: str, batch_size: int) -> arm_process.Worker:
    task = {**dataclasses.asdict(arm), "workload": workload, "batch_size": batch_size}
    return arm_process.Worker(arm.name, task)


def _step_mib(arm: Arm, workload: str, batch_size: int) -> float:
    process = _start(arm, workload, batch_size)
    process.close()
    return process.facts["step_bytes"] / MIB


def largest_batch(
    step_mib: Callable[[int], float], budget_mib: float, start: int
) -> int:
    """Finds about the largest batch whose step fits into a budget.

    Args:
      step_mib: measures the memory of a step of so many examples, in MiB; grows
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
        result["time_ratio"] = _spread(
            [a / b for a, b in zip(per_example, first_per_example, strict=True)]
        )
        for name in ("step_bytes", "process_bytes"):
            result[f"{name}_ratio"] = result[name] / first[name]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }


HEADER = (
    "arm",
    "batch",
    "ms a step",
    "examples a second",
    "time ratio (range)",
    "MiB of a step",
    "ratio",
    "MiB in all",
    "ratio",
    "trace s",
    "first step s",
    "graph nodes",
)


def table(workload: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Lays the figures of one workload out in Markdown."""

    def cells(name: str, result: Mapping[str, Any]) -> list[str]:
        if "failed" in result:
            return [name, "failed", *[""] * (len(HEADER) - 2)]
        ratio, trace = result["time_ratio"], result["trace_seconds"]
        return [
            name,
            str(result["batch_size"]),
            f"{result['milliseconds_per_step']:.4g}",
            f"{result['examples_per_second']:.4g}",
            f"{ratio['median']:.3f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
            f"{result['step_bytes'] / MIB:.0f}",
            f"{result['step_bytes_ratio']:.2f}",
            f"{result['process_bytes'] / MIB:.0f}",
            f"{result['process_bytes_ratio']:.2f}",
            "" if trace is None else f"{trace:.1f}",
            f"{result['first_step_seconds']:.1f}",
            str(result["graph_nodes"] or ""),
        ]

    rows = [list(HEADER), *(cells(*item) for item in results.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])])
    lines = []
    for head, *others in rows:
        padded = [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
        lines.append(f"| {' | '.join([head.ljust(widths[0]), *padded])} |")
    why = [result["failed"] for result in results.values() if "failed" in result]
    return "\n".join([f"### {workload}", "", *lines, *(["", *why] if why else []), ""])


def draw(path: pathlib.Path, results: Mapping[str, Mapping[str, Any]]) -> bool:
    """Draws bars of time and memory ratios; False where matplotlib is missing."""
    try:
        from matplotlib import figure
    except ImportError:
        return False
    height = 1 + sum(0.5 + 0.35 * len(arms) for arms in results.values())
    picture = figure.Figure(figsize=(9, height), layout="constrained")
    axes = picture.subplots(
        len(results), 2, squeeze=False, sharex="col", sharey="row",
        height_ratios=[len(arms) + 1 for arms in results.values()],
    )  # fmt: skip
    for row, (workload, arms) in zip(axes, results.items(), strict=True):
        done = {name: arm for name, arm in arms.items() if "failed" not in arm}
        times = [arm["time_ratio"]["median"] for arm in done.values()]
        memories = [arm["step_bytes_ratio"] for arm in done.values()]
        for axis, values, title in zip(
            row, (times, memories), ("time", "memory of a step"), strict=True
        ):
            colors = ["C0" if n.startswith("custom") else "0.7" for n in done]
            bars = axis.barh(list(done), values, color=colors)
            axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
            axis.axvline(1, color="0.3", linewidth=0.8)
            axis.set_title(f"{workload}: {title}", loc="left", fontsize=9)
            axis.spines[["top", "right"]].set_visible(False)
            axis.margins(x=0.12)
        row[0].invert_yaxis()
    for axis in axes[-1]:
        axis.set_xlabel("ratio to the first arm")
    picture.savefig(path, dpi=150)
    return True


def run(_settings: settings.Config, flag_values: Any) -> int:
    """Runs the benchmark; returns the exit code."""
    arms = parse_arms(flag_values.arms)
    names = parse_workloads(flag_values.workloads, arms)
    if flag_values.same_memory and flag_values.memory_budget_mib:
        raise errors.UsageError(
            f"--memory_budget_mib ({flag_values.memory_budget_mib}) contradicts "
            "--same_memory."
        )
    folder = app.new_folder(flag_values.output_dir, "a benchmark")
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        results[name] = measure(
            name,
            arms,
            flag_values.repeats,
            flag_values.block_seconds,
            flag_values.memory_budget_mib,
            flag_values.same_memory,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        print(table(name, results[name]), flush=True)
        drawn = _write(folder, results)  # by now, in case that the next one is stopped
    print(f"Table{' and picture' if drawn else ''}: {folder}")
    failed = [arm for result in results.values() for arm in result.values()]
    return int(any("failed" in arm for arm in failed))


def _write(folder: pathlib.Path, results: Mapping[str, Any]) -> bool:
    """Writes the workloads that are done; tells whether there is a picture."""
    text = "\n".join(table(name, result) for name, result in results.items())
    record.write_atomically(folder / "benchmark.md", text)
    words = ["python", "-m", "mp_loop.benchmark", *sys.argv[1:]]
    whole = {
        "command": " ".join(words),
        "environment": environment.environment(),
        "workloads": results,
    }
    record.write_atomically(folder / "benchmark.json", record.to_json(whole))
    return draw(folder / "benchmark.png", results)


if __name__ == "__main__":
    app.main(run, declare, of_experiment=False)
