"""A long run, watched: memory, traces, open files, size of the records.

    python experiments/robustness/soak.py --output_dir=runs/soak --steps=100000

All flags of `mp_loop.train` may follow. Prints a table; exit code 1 if anything grew.
"""

import os
import pathlib
import sys

from mp_loop.cli import app
from mp_loop.config import settings
from mp_loop.run import build, run_folder

WATCHED = 20  # rows of the table
DEFAULTS = (
    "--model=mlp", "--batch_size=32", "--steps_per_call=50", "--log_every=100",
    "--eval_every=5000", "--checkpoint_every=1000",
)  # fmt: skip


def resident() -> float:
    """MiB of memory that this process holds now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def size(folder: pathlib.Path) -> float:
    """MiB of all files in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files) / 2**20


def run(config: settings.Config, _flags: object) -> int:
    """Trains and watches; returns the exit code."""
    built = build.from_settings(config)
    from mp_loop.run import checkpointing, loop, planning

    out = run_folder.RunFolder.create(config.records.output_dir, config.to_flagfile())
    plan = planning.Plan(
        built.total_steps,
        built.steps_per_epoch,
        config.data.batch_size,
        config.training.steps_per_call,
        config.training.log_every,
        config.training.eval_every,
        config.training.checkpoint_every,
    )
    checkpoints = checkpointing.Checkpoints(
        out.checkpoints,
        built.step.state,
        config.records.keep_checkpoints,
        before_publishing=out.sync,
    )
    rows = []

    def watch(line: dict) -> None:
        # After the first epoch, which builds everything.
        due = len(rows) * built.total_steps // WATCHED + built.steps_per_epoch
        if "loss" in line and line["step"] >= due:
            folder = pathlib.Path(config.records.output_dir)
            rows.append(
                (
                    line["step"],
                    resident(),
                    built.step._run.experimental_get_tracing_count(),
                    len(os.listdir("/proc/self/fd")),
                    size(folder / "checkpoints"),
                    (folder / "metrics.jsonl").stat().st_size / line["step"],
                    size(folder / "tensorboard") * 2**20 / line["step"],
                )
            )
            print(
                "| {:6d} | {:5.0f} | {} | {} | {:.1f} | {:.2f} | {:.2f} |".format(
                    *rows[-1]
                )
            )

    print("| step | memory, MiB | traces | open files | checkpoints, MiB "
          "| metrics.jsonl, bytes/step | tensorboard, bytes/step |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    result = loop.Loop(
        built.step, built.batches, built.evaluate, plan, out, checkpoints, watch
    ).train()
    out.close()
    print(f"accuracy {result.evaluation['eval_accuracy']:.4f}")
    half = rows[len(rows) // 2 :]
    grew = {
        "memory": half[-1][1] > half[0][1] * 1.02,
        "traces": half[-1][2] > 1,
        "open files": max(row[3] for row in half) > max(row[3] for row in rows[:3]),
        "checkpoints": half[-1][4] > rows[2][4] * 1.5,
    }
    print("grew:", ", ".join(name for name, yes in grew.items() if yes) or "nothing")
    return int(any(grew.values()))


if __name__ == "__main__":
    sys.argv[1:1] = DEFAULTS
    app.main(run)
