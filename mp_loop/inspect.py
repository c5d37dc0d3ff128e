"""Shows what the numbers do: `python -m mp_loop.inspect --flagfile=exp.flags`.

Looks --looks times into the model that the flags describe: at the start, and then
every --inspect_every steps of training (here 10 unless given). Prints two tables of
the last look: every layer, and every variable. --checkpoints=runs/a/checkpoints
starts from the newest checkpoint of a run, whose flags are given with
--flagfile=runs/a/flags.txt and another --output_dir. Shares are of the numbers that are
not 0, as float16 would treat them (what the 16-bit step really did shows as `inf`
and `nan`):

    room       doublings left to 65504; for gradients, at the loss scale
    lost x1    gradients that would become 0 without loss scaling
    lost       gradients that become 0 at the loss scale
    scales     powers of two: loss scales that lose less than --share
    unseen     updates that a weight held in 16 bits would not show
    < 2^-11    updates below 2^-11 of their weight (2^-8 for bfloat16)

--output_dir gets every look: numerics.jsonl, TensorBoard histograms, numerics.png
(layers and steps) and exponents.png (layers and exponents); with --advise also
advice.json.

--advise finds what to change by measuring: which layers should stay in float32,
which initial scale and growth interval fit, and whether bfloat16 is safer. The
flags it found are the last lines. Exit codes: 0 done, 1 nothing was found that
helps, 2 bad input.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shlex
import textwrap
from typing import TYPE_CHECKING, Any

from absl import flags

from mp_loop.cli import app
from mp_loop.config import errors, settings
from mp_loop.rendering import figures, numbers, tables
from mp_loop.run import build, files, run_folder, strict_json

if TYPE_CHECKING:
    from mp_loop.run import experiment

_EVERY = 10
_WIDTH = 96


def declare(flag_values: flags.FlagValues) -> None:
    """Declares the flags of this command alone."""
    flags.DEFINE_bool("advise", False, "Find what to change.", flag_values=flag_values)
    flags.DEFINE_integer(
        "looks", 3, "How often.", lower_bound=1, flag_values=flag_values
    )
    flags.DEFINE_string(
        "checkpoints",
        "",
        "Folder of checkpoints: start from the newest.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "share",
        0.01,
        "Share of the gradients that a suitable loss scale may lose.",
        lower_bound=0.0,
        upper_bound=1.0,
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "bound",
        0.05,
        "With --advise: largest relative error of the outputs.",
        lower_bound=0.0,
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "grad_bound",
        0.5,
        "With --advise: largest relative error of the gradient of any variable.",
        lower_bound=0.0,
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "reference",
        "float32",
        ["float32", "float64"],
        "With --advise: what errors are measured against.",
        flag_values=flag_values,
    )


def run(config: settings.Config, flag_values: Any) -> int:
    """Looks, prints and advises; returns the exit code."""
    config = _settings(config, flag_values)
    if not flag_values.checkpoints:
        config = config.replace(head_epochs=0)
    built = build.from_settings(config)
    from mp_loop.numerics import probe, probe_report

    if flag_values.checkpoints:
        built = _restored(built, flag_values.checkpoints)
    start = int(built.step.state.step)
    out = None
    if config.records.output_dir:
        out = run_folder.RunFolder.create(
            config.records.output_dir, config.to_flagfile()
        )
    looker = probe.Probe(built.step)
    lines = []
    try:
        for look in range(flag_values.looks):
            position = start + look * config.training.inspect_every
            _train_to(built, position)
            batch = next(iter(_batches(built, position)))
            lines.append(probe_report.summarize(looker.look(*batch), flag_values.share))
            _say_progress(lines[-1])
            if out:
                out.log_numerics(lines[-1])
        print(report(built.config, lines[-1]))
        if out:
            _draw(config.records.output_dir, lines)
        if not flag_values.advise:
            return 0
        return _advise(built, lines, flag_values)
    finally:
        if out:
            out.close()


def _settings(config: settings.Config, flag_values: Any) -> settings.Config:
    """Checks what only this command asks for, and fills in its defaults."""
    if config.records.resume:
        raise errors.UsageError("--resume (True) must not be given: inspect starts.")
    if config.precision.loop != "custom":
        raise errors.UsageError(
            f"--loop ({config.precision.loop}) must be custom: only our own step can "
            "be inspected."
        )
    if config.parallel.strategy != "none":
        raise errors.UsageError(
            f"--strategy ({config.parallel.strategy}) must be none: one device is "
            "inspected."
        )
    for name in ("share", "bound", "grad_bound"):
        value = getattr(flag_values, name)
        if not value > 0:
            raise errors.UsageError(f"--{name} ({value}) must be greater than 0.")
    if flag_values.advise and config.precision.precision == "float32":
        raise errors.UsageError(
            "--precision (float32) needs no advice: give float16 or bfloat16."
        )
    return config.replace(inspect_every=config.training.inspect_every or _EVERY)


def _restored(built: experiment.Experiment, folder: str) -> experiment.Experiment:
    """Puts the newest checkpoint of a folder into the step; nothing is written."""
    from mp_loop.run import checkpointing

    if not os.path.isdir(folder) or not os.listdir(folder):
        raise errors.UsageError(f"--checkpoints ({folder}) holds no checkpoint.")

    def enter(phase: int) -> Any:
        nonlocal built
        built = built.in_phase(phase)
        return built.step.state

    state = built.step.state
    with errors.bad_input(checkpointing.CheckpointError):
        checkpointing.Checkpoints(folder, state, keep=1, enter=enter).restore()
    return built


def _train_to(built: experiment.Experiment, position: int) -> None:
    """Takes the steps up to a position."""
    done = int(built.step.state.step)
    while done < position:
        epoch, batch = divmod(done, built.steps_per_epoch)
        count = min(position - done, built.steps_per_epoch - batch)
        built.step.run(iter(built.batches(epoch, batch)), count)
        done += count


def _batches(built: experiment.Experiment, position: int) -> Any:
    epoch, batch = divmod(position, built.steps_per_epoch)
    return built.batches(epoch, batch)


def _say_progress(line: dict[str, Any]) -> None:
    print(
        f"step {line['step']}: loss {line['loss']:.4g}, loss scale "
        f"{numbers.power_of_two(line['loss_scale'])}"
        f"{'' if line['grads_finite'] else ', overflows'}",
        flush=True,
    )


def report(config: settings.Config, line: dict[str, Any]) -> str:
    """Lays one look out as two tables, at most 96 columns wide."""
    scale = numbers.power_of_two(line["loss_scale"])
    half = "2^-8" if line["precision"] == "bfloat16" else "2^-11"
    layers = [
        ["layer", "in", "max", "room", "inf", "nan", "|", "room", "lost x1", "lost",
         "inf", "nan", "scales"]
    ]  # fmt: skip
    for layer in line["layers"]:
        here, back = layer["activations"], layer["activation_grads"]
        layers.append(
            [
                layer["name"],
                _short(layer["dtype"]),
                _number(here, "max", "{:.3g}"),
                _number(here, "headroom", "{:.1f}"),
                _count(here, "inf"),
                _count(here, "nan"),
                "|",
                _number(back, "headroom", "{:.1f}"),
                _share(back, "underflow_unscaled"),
                _share(back, "underflow"),
                _count(back, "inf"),
                _count(back, "nan"),
                _scales(back),
            ]
        )
    variables = [
        ["variable", "in", "room", "lost x1", "lost", "inf", "nan", "scales", "|",
         "update", f"< {half}", "unseen"]
    ]  # fmt: skip
    for variable in line["variables"]:
        grads, updates = variable["grads"], variable["updates"]
        variables.append(
            [
                variable["name"],
                _short(variable["dtype"]),
                _number(grads, "headroom", "{:.1f}"),
                _share(grads, "underflow_unscaled"),
                _share(grads, "underflow"),
                _count(grads, "inf"),
                _count(grads, "nan"),
                _scales(grads),
                "|",
                _number(updates, "ratio", "{:.1e}"),
                _share(updates, "below"),
                _share(updates, "unseen"),
            ]
        )
    common = line["loss_scales"]
    if common is None:
        suits = "There are no gradients."
    elif common[0] > common[1]:
        suits = (
            f"In float16, no loss scale suits every gradient: one needs at least "
            f"2^{common[0]}, another at most 2^{common[1]}."
        )
    else:
        suits = (
            f"In float16, loss scales from 2^{common[0]} to 2^{common[1]} lose less "
            f"than {line['share']:.2g} of every gradient."
        )
    title = (
        f"{config.model.model} on {config.data.dataset}, {line['precision']}, step "
        f"{line['step']}, loss scale {scale}"
    )
    return "\n".join(
        [
            "",
            title,
            "",
            f"Layers: activations | gradients of activations, times {scale}",
            *tables.columns(layers, line_width=_WIDTH),
            "",
            f"Variables: gradients, times {scale} | updates",
            *tables.columns(variables, line_width=_WIDTH),
            "",
            suits,
        ]
    )


def _number(entry: dict[str, Any] | None, name: str, form: str) -> str:
    value = None if entry is None else entry.get(name)
    return "-" if value is None else form.format(value)


def _share(entry: dict[str, Any] | None, name: str) -> str:
    """A share in percent; what is nearly nothing or nearly all does not look it."""
    value = None if entry is None else entry.get(name)
    if value is None:
        return "-"
    if 0 < value < 0.001:
        return "<0.1%"
    if 0.999 < value < 1:
        return ">99.9%"
    return f"{100 * value:.1f}%" if value else "0"


def _count(entry: dict[str, Any] | None, name: str) -> str:
    value = 0 if entry is None else entry[name]
    return f"{value:.0e}".replace("+0", "") if value > 99999 else str(value or "")


def _scales(entry: dict[str, Any] | None) -> str:
    if entry is None or entry.get("scale_from") is None:
        return "-"
    low, high = entry["scale_from"], entry["scale_to"]
    return f"{low}..{high}" if low <= high else f"none ({low}>{high})"


def _short(dtype: str) -> str:
    return {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}.get(dtype, dtype)


def _draw(folder: str, lines: list[dict[str, Any]]) -> None:
    from mp_loop.report import numerics_plots

    drawn = numerics_plots.draw_steps(os.path.join(folder, "numerics.png"), lines)
    drawn &= numerics_plots.draw_exponents(
        os.path.join(folder, "exponents.png"), lines[-1]
    )
    print(f"\nEvery look: {folder}")
    if drawn:
        print(f"Pictures: {folder}/numerics.png, {folder}/exponents.png")
    else:
        print(f"No pictures: {figures.MISSING}")


def _advise(
    built: experiment.Experiment, lines: list[dict[str, Any]], flag_values: Any
) -> int:
    """Measures, prints and writes the advice; returns the exit code."""
    from mp_loop.numerics import advice
    from mp_loop.step import loss_scale

    config = built.config
    near = flag_values.bound, flag_values.grad_bound
    batches = [
        next(iter(_batches(built, line["step"])))[:2] for line in (lines[0], lines[-1])
    ]

    def judge(precision: str, scale: float) -> advice.Judge:
        return advice.Judge(
            built.model,
            built.step.loss,
            batches,
            precision,
            scale,
            flag_values.reference,
        )

    rule = loss_scale.DynamicLossScale()
    scaled = config.precision.precision == "float16"
    limits = advice.limits(lines)
    first = advice.initial_scale(rule, limits) if scaled else 1.0
    print(
        f"\nMeasuring {config.precision.precision} against {flag_values.reference} ..."
    )
    with errors.bad_input(ValueError):
        own = judge(config.precision.precision, first)
    islands = advice.fewest(
        own.candidates, lambda names: own.error(names).within(*near)
    )
    if islands is None:
        print(
            "Not even float32 in every layer is near enough: the model overflows in "
            "float32, or the bounds are too narrow."
        )
        return 1
    advised = [f"--precision={config.precision.precision}"]
    if islands.names:
        advised.append(f"--float32_layers={advice.regex(islands.names)}")
    measured = {config.precision.precision: own.error(())}
    if islands.names:
        measured[f"{config.precision.precision} as advised"] = own.error(islands.names)
    said = [_islands(islands, own)]
    if scaled:
        # Layers in float32 do not limit the scale.
        limits = advice.limits(lines, islands.names)
        first = advice.initial_scale(rule, limits)
        rule = dataclasses.replace(rule, initial_scale=first)
        interval = advice.growth_interval(rule, limits, built.total_steps)
        advised += [f"--initial_scale={first:.10g}", f"--growth_interval={interval}"]
        said.append(_scale_advice(limits, first, interval, built.total_steps))
        other = judge("bfloat16", 1.0).error(())
        measured["bfloat16"] = other
        safer = bool(islands.names) and other.within(*near)
        said.append(_other_advice(safer, other, near))
    print(_errors(measured, near, flag_values.reference))
    print("\n".join(textwrap.fill(text, _WIDTH) for text in said))
    print("\nFlags:")
    for flag in advised:
        print(f"  {shlex.quote(flag)}")
    if config.records.output_dir:
        found = {
            "flags": advised,
            "float32_layers": list(islands.names),
            "fewest": islands.fewest,
            "measurements": own.evaluations,
            "bound": near[0],
            "grad_bound": near[1],
            "reference": flag_values.reference,
            "errors": {name: dataclasses.asdict(e) for name, e in measured.items()},
        }
        if scaled:
            found |= {
                "initial_scale": first,
                "growth_interval": interval,
                "bfloat16_is_safer": safer,
            }
        path = pathlib.Path(config.records.output_dir) / "advice.json"
        files.write_atomically(path, strict_json.to_document(found))
    return 0


def _islands(islands: Any, judge: Any) -> str:
    if not islands.names:
        return "No layer needs float32: all are near enough as they are."
    how = (
        "every smaller set was tried"
        if islands.fewest
        else "none of them can be left out; not every smaller set was tried"
    )
    return (
        f"Keep in float32: {', '.join(islands.names)} ({len(islands.names)} of "
        f"{len(judge.candidates)} layers; {how}; {judge.evaluations} measurements)."
    )


def _scale_advice(limits: Any, first: float, interval: int, total: int) -> str:
    if not limits:
        return "There is no gradient in 16 bits that a loss scale could serve."
    low = max(pair[0] for _, pair in limits)
    high = min(pair[1] for _, pair in limits)
    suits = (
        f"Loss scales from 2^{low} to 2^{high} suit every step looked at"
        if low <= high
        else f"No loss scale suits all that was looked at (2^{low} at least, 2^{high} "
        "at most)"
    )
    return (
        f"{suits}: start at {numbers.power_of_two(first)}. Of the growth intervals, "
        f"{interval} lost the fewest of {total} steps when the rule was played against "
        "these limits."
    )


def _other_advice(safer: bool, error: Any, near: tuple[float, float]) -> str:
    if safer:
        return (
            "bfloat16 would be safer: it is near enough without islands, and needs no "
            "loss scale (--precision=bfloat16). Whether it is as fast here, "
            "python -m mp_loop.doctor says."
        )
    if error.within(*near):
        return "bfloat16 would be near enough too, with coarser rounding."
    return "bfloat16 would not be safer: its rounding is outside the bounds."


def _errors(measured: dict[str, Any], near: tuple[float, float], reference: str) -> str:
    rows = [["relative error of", "outputs", "gradients", "worst in"]]
    for name, error in measured.items():
        rows.append(
            [name, f"{error.outputs:.1e}", f"{error.grads:.1e}", error.variable]
        )
    rows.append(["allowed", f"{near[0]:.1e}", f"{near[1]:.1e}", ""])
    table = tables.columns(rows, line_width=_WIDTH)
    return "\n".join(["", f"Against {reference}:", *table, ""])


if __name__ == "__main__":
    app.main(run, declare)
