"""Measures time and memory of a training step, arm beside arm.

    python -m mp_loop.benchmark --workloads=resnet20 \
        --arms=keras:float32,keras:bfloat16,custom:bfloat16 --output_dir=runs/speed

Every arm is a process of its own. After warm-up the arms take turns: in each of
--repeats rounds every arm runs one block of steps of about --block_seconds, and waits
for the device once, at the end of the block. A ratio is the median over rounds of an
arm's time divided by the time of the first arm in the same round, so that a machine
whose speed drifts does not distort it. Use an otherwise idle machine.

An arm is loop:precision, with options after plus signs (custom:bfloat16+recompute):

    keras    Keras' mixed policy, in float16 with LossScaleOptimizer
    fit      the same through model.fit
    custom   mp_loop
    unscaled custom without scale, check and skip
    floor    forward and backward of custom alone
    torch    PyTorch: autocast, GradScaler, channels last (needs the extra `peers`)
    stream   workloads update20 and update400: reads and writes the bytes of an update
    +xla     compiled by XLA (all but torch)
    +compile torch.compile, and fused Adam (torch)
    +tf32    products of float32 on a GPU in TF32; without it, in float32 (every arm)
    +recompute activations computed again in the backward pass (ours)

Memory is what one call of several steps adds at its peak. "Step memory" is more than
the process held after a step on a single example, "process memory" more than it held
when the framework had just been imported. A process keeps what is freed, and compiled
code: "allocated" is the peak of TensorFlow's allocator for the processor beyond what it
had given out before, where that is counted (with oneDNN). On a GPU the first two are
the peak of the framework's allocator there, "step memory" more than what it had given
out after the first step.
With --memory_budget_mib every arm runs with the largest batch whose step fits; with
--same_memory, with the largest whose step fits into the memory of the first arm's.

"Until first step" counts from the imported framework: model, tracing and compiling.
With --start_together the arms of a workload get there side by side (and share the
processors meanwhile); blocks are always timed one arm at a time. On a GPU every arm's
process takes memory as it needs it (TF_FORCE_GPU_ALLOW_GROWTH=true, unless you set it).

`--output_dir` gets benchmark.md, benchmark.json and benchmark.png. Exit codes: 0
done, 1 an arm failed, 2 bad input (one line on stderr, nothing written).
"""

from __future__ import annotations

import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from mp_loop.bench import choices, measure, results_plot, results_table, workloads
from mp_loop.cli import app, folders
from mp_loop.config import comparison_arms, errors, settings
from mp_loop.hardware import environment, startup
from mp_loop.run import files, strict_json


def declare(flag_values: flags.FlagValues) -> None:
    """Declares the flags of this command; it has none of an experiment."""
    _declare_what_runs(flag_values)
    _declare_how_it_runs(flag_values)
    flags.DEFINE_string(
        "output_dir", "", "Folder of the results (required).", flag_values=flag_values
    )


def _declare_what_runs(flag_values: flags.FlagValues) -> None:
    text = ", ".join(workloads.WORKLOADS)
    flags.DEFINE_string(
        "workloads",
        "resnet20",
        f"Comma-separated workloads, among: {text}.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "arms",
        choices.DEFAULT_ARMS,
        "Comma-separated arms; ratios are to the first.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "repeats",
        7,
        "Rounds; in each, every arm runs one block.",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "block_seconds",
        1.0,
        "About the seconds that a block takes; it has at least three steps.",
        lower_bound=0.0,
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "memory_budget_mib",
        0.0,
        "MiB that a step may take: every arm gets the largest batch that fits; 0: all "
        "arms get equal batches.",
        lower_bound=0.0,
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "same_memory",
        False,
        "Give every arm the largest batch whose step fits into the first arm's memory.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "batch_size",
        0,
        "Examples of a step; 0: the workload's own, which on a GPU may be larger.",
        lower_bound=0,
        flag_values=flag_values,
    )


def _declare_how_it_runs(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "batches",
        "host",
        ["host", "device"],
        "Where batches wait: in the host's memory, from where every step copies its "
        "own to the GPU, or on the GPU.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "start_together",
        False,
        "Start the arms of a workload side by side: to trace and compile takes long.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "start_seconds",
        0.0,
        "Give an arm up that is not warm after so many seconds; 0: never.",
        lower_bound=0.0,
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "tiny",
        False,
        "Shrink every workload as far as possible, to see that its arms run.",
        flag_values=flag_values,
    )


def run(_config: settings.Config, flag_values: flags.FlagValues) -> int:
    """Runs the benchmark; returns the exit code."""
    arms = choices.parse_arms(flag_values.arms)
    names = choices.parse_workloads(flag_values.workloads, arms)
    _check(flag_values, arms)
    folder = folders.create(flag_values.output_dir, "a benchmark")
    with startup.quiet_start():
        from mp_loop.hardware import devices

        on_gpu = devices.has_gpu()
    plan = measure.BenchmarkPlan(
        flag_values.repeats,
        flag_values.block_seconds,
        flag_values.memory_budget_mib,
        flag_values.same_memory,
        flag_values.batch_size,
        on_gpu=on_gpu,
        on_device=flag_values.batches == "device",
        together=flag_values.start_together,
        start_seconds=flag_values.start_seconds,
    )
    results: dict[str, results_plot.Results] = {}
    for name in names:
        workload = workloads.WORKLOADS[name]
        workload = workload.tiny() if flag_values.tiny else workload
        results[name] = measure.measure(name, workload, arms, plan, _say)
        print(results_table.markdown(name, results[name]), flush=True)
        drawn = _write(folder, results)  # now, in case the next one is stopped
    print(f"Table{' and picture' if drawn else ''}: {folder}")
    figures = [arm for arms in results.values() for arm in arms.values()]
    return int(any("failed" in arm for arm in figures))


def _check(flag_values: flags.FlagValues, arms: Sequence[comparison_arms.Arm]) -> None:
    """Refuses flags that contradict each other."""
    budget = flag_values.memory_budget_mib
    searches = [f"--memory_budget_mib ({budget})"] if budget else []
    searches += ["--same_memory"] if flag_values.same_memory else []
    given = [*searches, *(["--start_together"] if flag_values.start_together else [])]
    if searches and len(given) > 1:
        raise errors.UsageError(f"{given[0]} contradicts {given[1]}.")
    if flag_values.batches == "device" and any(arm.loop == "fit" for arm in arms):
        raise errors.UsageError(
            "--batches (device): model.fit takes its batches from the host; leave the "
            "arms of fit out."
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write(folder: pathlib.Path, results: Mapping[str, results_plot.Results]) -> bool:
    """Writes the workloads that are done; returns whether there is a picture."""
    text = "\n".join(results_table.markdown(*item) for item in results.items())
    files.write_atomically(folder / "benchmark.md", text)
    words = ["python", "-m", "mp_loop.benchmark", *sys.argv[1:]]
    whole = {
        "command": shlex.join(words),
        "environment": environment.environment(),
        "workloads": results,
    }
    files.write_atomically(folder / "benchmark.json", strict_json.to_document(whole))
    return results_plot.draw(folder / "benchmark.png", results)


if __name__ == "__main__":
    app.main(run, declare, of_experiment=False)
