"""What a command line may change in a run, or a comparison, that is resumed.

    config = continued_run(before, config, flag_values)

What changes the arithmetic must be as it was; one line names what is not.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from mp_loop.cli import app
from mp_loop.config import errors, fields, settings
from mp_loop.run import records

if TYPE_CHECKING:
    from absl import flags

# What does not decide what a run computes, or only how far it goes.
MAY_CHANGE = (
    "all_reduce_dtype",
    "best_by",
    "callbacks",
    "change_precision",
    "change_schedule",
    "checkpoint_every",
    "data_dir",
    "diverged_after",
    "early_stopping",
    "epochs",
    "eval_every",
    "explain_skips",
    "inspect_every",
    "keep_checkpoints",
    "log_every",
    "max_data_gib",
    "on_stuck",
    "output_dir",
    "profile_steps",
    "quiet",
    "resume",
    "steps",
    "steps_per_call",
    "strategy",
    "worker_timeout",
)
# They decide the learning rate at every step, unless it is constant.
_LENGTH = ("epochs", "steps")
_LENGTH_FLAGS = tuple(f"--{name} " for name in _LENGTH)
# What --change_schedule allows in addition.
SCHEDULE_MAY_CHANGE = (
    *_LENGTH,
    "decay_at",
    "decay_factor",
    "learning_rate",
    "schedule",
    "warmup_steps",
)
# What --change_precision allows in addition.
PRECISION_MAY_CHANGE = (
    "backoff_factor",
    "float32_layers",
    "growth_factor",
    "growth_interval",
    "hysteresis",
    "initial_scale",
    "loss_scale",
    "max_scale",
    "min_scale",
    "precision",
    "scale_preset",
)


def resolved(config: settings.Config, description: str) -> settings.Config:
    """Returns the settings with --resume=auto resolved.

    Args:
      config: what the command line says.
      description: the name of the file that --output_dir holds once there is something
        to resume.
    """
    if config.records.resume != "auto":
        return config
    if os.path.exists(os.path.join(config.records.output_dir, description)):
        return config.replace(resume=True)
    return config.as_begun()


def settings_given(
    config: settings.Config, flag_values: flags.FlagValues | None
) -> dict[str, fields.Value]:
    """Returns the settings that the command line names, by name.

    Args:
      config: all settings, defaults included.
      flag_values: the parsed flags; None: every setting counts as named.
    """
    return {
        name: value
        for name, value in config.values().items()
        if flag_values is None or flag_values[name].present
    }


def refuse_changes(
    before: Mapping[str, fields.Value],
    given: Mapping[str, fields.Value],
    may_change: Collection[str],
    what: str,
) -> None:
    """Refuses other values than before.

    Args:
      before: flags by name, as they were.
      given: flags by name, as the command line has them.
      may_change: names of the flags that may have another value.
      what: what is resumed, "run" or "comparison".

    Raises:
      UsageError: flags differ that must not; the message names all of them.
    """
    differing = [
        f"--{name} ({value}, was {before[name]})"
        for name, value in given.items()
        if value != before[name] and name not in may_change
    ]
    if not differing:
        return
    advice = ""
    if what == "run" and any(word.startswith("--precision ") for word in differing):
        advice = " To go on in another precision, add --change_precision."
    if what == "run" and any(word.startswith(_LENGTH_FLAGS) for word in differing):
        advice += (
            f" The learning rate (--schedule={before['schedule']}) depends on the "
            "length of the run: to go on with other rates, add --change_schedule, or "
            "start a new run with --model=model.keras of this one."
        )
    raise errors.UsageError(
        f"{', '.join(differing)} must be as in the {what} to be resumed.{advice}"
    )


def read_run(
    config: settings.Config, flag_values: flags.FlagValues | None
) -> settings.Config:
    """Returns the settings of the run in --output_dir; see `continued_run`.

    Raises:
      UsageError: there is no run, or a flag contradicts it.
    """
    output_dir = config.records.output_dir
    path = os.path.join(output_dir, records.FLAGS_FILE)
    if not os.path.exists(path):
        raise errors.UsageError(f"--output_dir ({output_dir}) holds no run to resume.")
    before, _ = app.parse(["train", f"--flagfile={path}"])
    return continued_run(before, config, flag_values)


def continued_run(
    before: settings.Config,
    config: settings.Config,
    flag_values: flags.FlagValues | None,
) -> settings.Config:
    """Returns the settings of a resumed run: its own, and what may change.

    Args:
      before: settings that the run was started with.
      config: what the command line says, defaults included.
      flag_values: the parsed flags; None: every setting counts as named.

    Raises:
      UsageError: a flag contradicts the run.
    """
    if config.precision.precision == "auto":
        config = config.at_precision(before.precision.precision)
    given = settings_given(config, flag_values)
    may_change = set(MAY_CHANGE)
    if before.optimizer.schedule != "constant":
        may_change -= set(_LENGTH)
    if config.records.change_schedule:
        may_change |= set(SCHEDULE_MAY_CHANGE)
    if config.records.change_precision:
        may_change |= set(PRECISION_MAY_CHANGE)
        precision = given.get("precision", before.precision.precision)
        before = before.at_precision(precision)
    refuse_changes(before.values(), given, may_change, "run")
    with errors.bad_input(ValueError):
        return before.replace(**given)
