"""Shows what 16 bits do to a model: `python -m mp_loop.inspect --flagfile=exp.flags`.

Inspects the model that the flags describe --looks times: at the start, and then after
every --inspect_every steps of training (here 10 by default). Prints two tables of the
last look: every layer, and every variable. --checkpoints=runs/a/checkpoints starts
from the newest checkpoint of a run; its flags are given with
--flagfile=runs/a/flags.txt and another --output_dir. Shares are shares of the nonzero
numbers, as float16 would treat them; `inf` and `nan` count what the 16-bit step
really computed:

    room       doublings left to 65504; for gradients, at the loss scale
    lost x1    gradients that would become 0 without loss scaling
    lost       gradients that become 0 at the loss scale
    scales     powers of two: loss scales that lose less than --share
    unseen     updates that would not change a weight stored in 16 bits
    < 2^-11    updates below 2^-11 of their weight (2^-8 for bfloat16)

--output_dir receives every look: numerics.jsonl, TensorBoard histograms, numerics.png
(layers and steps) and exponents.png (layers and exponents); with --advise also
advice.json.

--advise finds what to change by measuring: which layers should stay in float32,
which initial scale and growth interval fit, and whether bfloat16 is safer. The
last lines are the advised flags. Exit codes: 0 done, 1 nothing that helps was found,
2 bad input.
"""

from __future__ import annotations

import pathlib
import shlex
from typing import TYPE_CHECKING

from absl import flags

from mp_loop.cli import app
from mp_loop.config import errors, json_values, settings
from mp_loop.rendering import figures, numbers, tables
from mp_loop.run import build, files, run_folder, strict_json

if TYPE_CHECKING:
    from mp_loop.run import experiment

_DEFAULT_EVERY = 10


def declare(flag_values: flags.FlagValues) -> None:
    """Declares the flags of this command alone."""
    define = app.definer(flag_values)
    define(flags.DEFINE_bool, "advise", False, "Find what to change.")
    define(flags.DEFINE_integer, "looks", 3, "How often.", lower_bound=1)
    text = "Folder of checkpoints: start from the newest."
    define(flags.DEFINE_string, "checkpoints", "", text)
    text = "Share of the gradients that a suitable loss scale may lose."
    bounds = {"lower_bound": 0.0, "upper_bound": 1.0}
    define(flags.DEFINE_float, "share", 0.01, text, **bounds)
    text = "With --advise: largest relative error of the outputs."
    define(flags.DEFINE_float, "bound", 0.05, text, lower_bound=0.0)
    text = "With --advise: largest relative error of the gradient of any variable."
    define(flags.DEFINE_float, "grad_bound", 0.5, text, lower_bound=0.0)
    text = "With --advise: what errors are measured against."
    dtypes = ["float32", "float64"]
    define(flags.DEFINE_enum, "reference", "float32", text, enum_values=dtypes)


def run(config: settings.Config, flag_values: flags.FlagValues) -> int:
    """Inspects, prints and advises; returns the exit code."""
    config = _checked(config, flag_values)
    if not flag_values.checkpoints:
        config = config.replace(head_epochs=0)
    built = build.from_settings(config)
    from mp_loop.numerics import probe_tables
    from mp_loop.run import inspection

    if flag_values.checkpoints:
        built = inspection.restored(built, flag_values.checkpoints)
    folder, out, lines = config.records.output_dir, None, []
    if folder:
        out = run_folder.RunFolder.create(folder, config.to_flagfile())
    try:
        for line in inspection.observations(
            built, flag_values.looks, flag_values.share
        ):
            lines.append(line)
            _print_progress(line)
            if out:
                out.log_numerics(line)
        name = f"{config.model.model} on {config.data.dataset}"
        print(probe_tables.report(name, lines[-1]))
        covered = built.coverage()
        if covered:
            print(f"\n{covered}\n", *tables.columns(covered.rows()), sep="\n")
        if out:
            _draw(pathlib.Path(folder), lines)
        return _advise(built, lines, flag_values) if flag_values.advise else 0
    finally:
        if out:
            out.close()


def _checked(config: settings.Config, flag_values: flags.FlagValues) -> settings.Config:
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
    return config.replace(inspect_every=config.training.inspect_every or _DEFAULT_EVERY)


def _print_progress(line: dict[str, json_values.Json]) -> None:
    print(
        f"step {line['step']}: loss {line['loss']:.4g}, loss scale "
        f"{numbers.power_of_two(line['loss_scale'])}"
        f"{'' if line['grads_finite'] else ', overflows'}",
        flush=True,
    )


def _draw(folder: pathlib.Path, lines: list[dict[str, json_values.Json]]) -> None:
    from mp_loop.report import numerics_plots

    drawn = numerics_plots.draw_steps(folder / "numerics.png", lines)
    drawn &= numerics_plots.draw_exponents(folder / "exponents.png", lines[-1])
    print(f"\nEvery look: {folder}")
    if drawn:
        print(f"Pictures: {folder}/numerics.png, {folder}/exponents.png")
    else:
        print(f"No pictures: {figures.MISSING}")


def _advise(
    built: experiment.Experiment,
    lines: list[dict[str, json_values.Json]],
    flag_values: flags.FlagValues,
) -> int:
    """Measures, prints and writes the advice; returns the exit code."""
    from mp_loop.numerics import advice, precision_errors
    from mp_loop.run import inspection

    precision = built.config.precision.precision
    reference = flag_values.reference
    print(f"\nMeasuring {precision} against {reference} ...")
    batches = [
        inspection.prepared_batch_at(built, line["step"])
        for line in (lines[0], lines[-1])
    ]
    scale = advice.scale_to_try(lines, precision)
    with errors.bad_input(ValueError):
        meter = precision_errors.ErrorMeter(
            built.model, built.step.loss, batches, precision, scale, reference
        )
    tolerance = advice.Tolerance(flag_values.bound, flag_values.grad_bound)
    found = advice.advise(meter, lines, built.total_steps, tolerance)
    if found is None:
        print(
            "Not even float32 in every layer is within the bounds: the model overflows "
            "in float32, or the bounds are too narrow."
        )
        return 1
    print(found.text)
    print("\nFlags:")
    for flag in found.flags:
        print(f"  {shlex.quote(flag)}")
    if built.config.records.output_dir:
        path = pathlib.Path(built.config.records.output_dir) / "advice.json"
        files.write_atomically(path, strict_json.to_document(found.findings))
    return 0


if __name__ == "__main__":
    app.main(run, declare)
