"""Trains a model: `python -m mp_loop.train --flagfile=exp.flags`.

Flags are the fields of `mp_loop.config.Config`; a later flag overrides an
earlier one. Exit codes: 0 done, 1 the training diverged, 2 bad input (one line
on stderr, nothing written), 130 interrupted (a checkpoint was saved).
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

from mp_loop import command, config, experiment, record

# What a resumed run may change; all else decides what is computed.
_MAY_CHANGE = (
    "checkpoint_every",
    "diverged_after",
    "epochs",
    "eval_every",
    "keep_checkpoints",
    "explain_skips",
    "inspect_every",
    "log_every",
    "on_stuck",
    "output_dir",
    "data_dir",
    "resume",
    "steps",
    "steps_per_call",
)


def run(settings: config.Config, _flags: Any) -> int:
    """Runs one experiment; returns the exit code."""
    if not settings.output_dir:
        raise command.UsageError("--output_dir must name a folder for the run.")
    if settings.resume:
        settings = _settings_to_resume(settings)
    else:
        _refuse_used_folder(settings.output_dir)
    built = experiment.build(settings)
    settings = built.settings  # --precision=auto resolved
    step, total_steps = built.step, built.total_steps
    # With TensorFlow, which takes seconds: a bad flag is told at once.
    import tqdm

    from mp_loop import heatmap, loop, machine

    plan = loop.Plan(
        total_steps=total_steps,
        steps_per_epoch=built.steps_per_epoch,
        **{
            field.name: getattr(settings, field.name)
            for field in dataclasses.fields(loop.Plan)
            if field.name not in ("total_steps", "steps_per_epoch")
        },
    )
    checkpoints = loop.Checkpoints(
        os.path.join(settings.output_dir, "checkpoints"),
        step.state,
        settings.keep_checkpoints,
    )
    flagfile = dataclasses.replace(settings, resume=False).to_flagfile()
    with command.bad_input(loop.CheckpointError, record.RecordError):
        if settings.resume:
            done = checkpoints.restore()
            step.export()
            out = record.Run.reopen(settings.output_dir, flagfile, done)
        else:
            done = 0
            out = record.Run.create(settings.output_dir, flagfile)
    witness = None
    if settings.loop == "custom":
        from mp_loop import probe
        from mp_loop import witness as witnesses

        witness = witnesses.Witness(
            probe.Probe(step),
            built.batches,
            built.steps_per_epoch,
            out,
            settings.explain_skips,
        )
    slower = machine.warning(settings.precision)
    if slower:
        print(f"Warning: {slower}", file=sys.stderr)

    bar = tqdm.tqdm(
        total=total_steps, initial=done, unit="step", dynamic_ncols=True, mininterval=1
    )

    def show(line: dict[str, Any]) -> None:
        bar.update(line["step"] - bar.n)
        if "eval_accuracy" in line:
            bar.write(
                f"step {line['step']}: accuracy {line['eval_accuracy']:.4f}, "
                f"loss {line['eval_loss']:.4f}",
                file=sys.stdout,
            )
        else:
            if "overflow" in line:
                skip = line["overflow"]
                said = f"step {skip['step']} was skipped: {skip['text']}"
                bar.write(said, file=sys.stdout)
            bar.set_postfix_str(
                f"loss {line['loss']:.3f}, scale {line['loss_scale']:g}, "
                f"skipped {line['skipped_steps']}, "
                f"{line['examples_per_second']:.0f} examples/s"
            )

    try:
        with command.stop_requested() as should_stop:
            result = loop.train(
                step,
                built.batches,
                built.evaluate,
                out,
                plan,
                checkpoints,
                show,
                should_stop,
                witness=witness,
            )
    except loop.TrainingDiverged as error:
        bar.close()
        print(f"Training diverged: {error}", file=sys.stderr)
        return 1
    except loop.Interrupted as stop:
        bar.close()
        print(
            f"Interrupted at step {stop.step}; a checkpoint was saved. Continue with: "
            f"python -m mp_loop.train --flagfile="
            f"{os.path.join(settings.output_dir, 'flags.txt')} --resume",
            file=sys.stderr,
        )
        return 130
    finally:
        out.close()
    bar.close()

    summary = {
        **dataclasses.asdict(result),
        **result.evaluation,
        "peak_memory_bytes": record.peak_memory_bytes(),
        "precision": settings.precision,
        "loop": settings.loop,
        "dataset": settings.dataset,
        "model": settings.model,
        "parameters": built.model.count_params(),
        "seed": settings.seed,
    }
    del summary["evaluation"]
    step.export().save(out.model_path)
    out.write_summary(summary)
    picture = out.draw()
    looks = out.read_numerics()
    if looks:
        heatmap.draw_steps(os.path.join(settings.output_dir, "numerics.png"), looks)
    print(_table(summary))
    print(f"Model, metrics and checkpoints: {settings.output_dir}")
    print(f"Picture: {picture}" if picture else _NO_PICTURE)
    return 0


_NO_PICTURE = "No picture: matplotlib is missing (pip install 'mp_loop[plots]')."


def _refuse_used_folder(folder: str) -> None:
    if os.path.exists(os.path.join(folder, "flags.txt")):
        raise command.UsageError(
            f"--output_dir ({folder}) already holds a run: add --resume to continue "
            "it, or choose another folder."
        )


def _settings_to_resume(settings: config.Config) -> config.Config:
    """Refuses what contradicts the run to be resumed; --precision=auto is its own."""
    path = os.path.join(settings.output_dir, "flags.txt")
    if not os.path.exists(path):
        raise command.UsageError(
            f"--output_dir ({settings.output_dir}) holds no run to resume."
        )
    before, _ = command.parse(["train", f"--flagfile={path}"])
    if settings.precision == "auto":
        settings = settings.at_precision(before.precision)
    for field in dataclasses.fields(config.Config):
        old, new = getattr(before, field.name), getattr(settings, field.name)
        if old != new and field.name not in _MAY_CHANGE:
            raise command.UsageError(
                f"--{field.name} ({new}) contradicts the run to be resumed, which has "
                f"{old}."
            )
    return settings


def _table(summary: dict[str, Any]) -> str:
    """Lays the results out for the terminal."""
    rows = [
        ("accuracy", f"{summary['eval_accuracy']:.4f}"),
        ("loss", f"{summary['eval_loss']:.4f}"),
        ("steps", f"{summary['steps']} ({summary['skipped_steps']} skipped)"),
        ("loss scale", f"{summary['final_loss_scale']:g}"),
        ("time a step", f"{summary['milliseconds_per_step']:.1f} ms"),
        ("examples a second", f"{summary['examples_per_second']:.0f}"),
        ("training time", f"{summary['train_seconds']:.1f} s"),
        ("peak memory", f"{summary['peak_memory_bytes'] / 2**20:.0f} MiB"),
    ]
    title = (
        f"{summary['model']} on {summary['dataset']}, {summary['precision']}, "
        f"{summary['loop']} loop"
    )
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {value}" for name, value in rows]
    return "\n".join(["", title, *lines, ""])


if __name__ == "__main__":
    command.main(run)
