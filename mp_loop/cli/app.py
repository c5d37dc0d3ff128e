"""The frame of every command: reads its flags, reports errors, returns an exit code.

    def run(config: settings.Config, flag_values: flags.FlagValues) -> int | None: ...

    if __name__ == "__main__":
        app.main(run)

Bad input ends a command with one line on stderr and exit code 2. Import this module
before TensorFlow, which it does not import: it silences TensorFlow's C++ log, unless
the user's environment asks for it, and a bad flag is reported at once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence

from absl import flags, logging

from mp_loop.cli import flag_hints, flagfiles, outcomes, streams
from mp_loop.config import errors, settings

# Read once, when TensorFlow is loaded: 2 keeps errors only.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def parse(
    argv: Sequence[str],
    declare: Callable[[flags.FlagValues], None] | None = None,
    flag_values: flags.FlagValues | None = None,
    of_experiment: bool = True,
    words: str = "",
) -> tuple[settings.Config, flags.FlagValues]:
    """Parses a command line into the experiment it describes.

    Args:
      argv: the program's name, then its arguments.
      declare: declares the command's own flags on the flag values it is given.
      flag_values: where the flags are declared; default: a fresh object.
      of_experiment: whether the flags of an experiment are declared.
      words: the flag of the command that arguments without a flag belong to; "": every
        argument must be a flag.

    Returns:
      The experiment, and the parsed flags (those of `declare`, and `help`).

    Raises:
      UsageError: a flag is unknown, malformed, invalid or contradicts another; an
        argument is not a flag; a flagfile cannot be read, or includes itself.
    """
    if flag_values is None:
        flag_values = flags.FlagValues()
    _declare(flag_values, declare, of_experiment)
    program, *given = argv
    positional = _parse_flags([program, *flagfiles.expand(given)], flag_values)
    if words:
        flag_values[words].value = positional
    elif positional:
        raise errors.UsageError(
            f"Unexpected positional arguments ({' '.join(positional)}): every "
            "argument must be a flag, --name=value."
        )
    if not of_experiment:
        return settings.Config(), flag_values
    try:
        config = settings.Config.from_flags(flag_values)
    except (ValueError, OverflowError) as error:
        raise errors.UsageError(errors.one_line(error)) from error
    _refuse_comments(config)
    return config, flag_values


def _parse_flags(argv: Sequence[str], flag_values: flags.FlagValues) -> list[str]:
    """Parses the flags; returns the arguments that are not flags."""
    try:
        return flag_values(list(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        hint = flag_hints.of(name, flag_values)
        raise errors.UsageError(f"Unknown flag --{name}.{hint}") from error
    except (flags.Error, ValueError) as error:
        message = errors.one_line(error).removeprefix("ERROR:: ")
        raise errors.UsageError(message) from error


def _refuse_comments(config: settings.Config) -> None:
    """Refuses a flagfile's trailing comment, which becomes part of the value."""
    for name, value in config.values().items():
        if isinstance(value, str) and re.search(r"\s#", value):
            raise errors.UsageError(
                f"--{name} ({value}) must not contain a comment: in a flagfile a "
                "comment must be on its own line."
            )


def main(
    run: Callable[[settings.Config, flags.FlagValues], int | None],
    declare: Callable[[flags.FlagValues], None] | None = None,
    of_experiment: bool = True,
    words: str = "",
) -> None:
    """Parses `sys.argv`, calls `run(config, flag_values)`, exits with its code.

    Args:
      run: the command; returns its exit code, None for 0.
      declare: declares the command's own flags.
      of_experiment: whether the command takes an experiment's flags.
      words: as for `parse`.

    Raises:
      SystemExit: always.
    """
    streams.keep_going()
    try:
        config, flag_values = parse(
            sys.argv, declare, flags.FLAGS, of_experiment, words
        )
        if flag_values.help:
            sys.stdout.write(_help(declare, of_experiment))
            sys.exit(0)
        _log_to_stderr()
        status = run(config, flag_values)
    except errors.UsageError as error:
        status = outcomes.bad_input(error).tell()
    except KeyboardInterrupt:  # Where nothing needed saving.
        sys.stderr.write("Interrupted.\n")
        status = outcomes.signal_code(signal.SIGINT)
    sys.exit(status or 0)


def definer(flag_values: flags.FlagValues) -> Callable[..., None]:
    """Returns a function that defines one flag of a command.

    Args:
      flag_values: where: what the command's `declare` is given.

    Returns:
      `define(flags.DEFINE_integer, name, default, help_text, lower_bound=1)`.
    """

    def define(
        kind: Callable[..., object],
        name: str,
        default: object,
        text: str,
        **limits: object,
    ) -> None:
        kind(name, default, help=text, flag_values=flag_values, **limits)

    return define


def _declare(
    flag_values: flags.FlagValues,
    declare: Callable[[flags.FlagValues], None] | None,
    of_experiment: bool = True,
) -> None:
    """Declares the flags of a command: its own, the experiment's, and help."""
    if declare is not None:
        declare(flag_values)
    if of_experiment:
        settings.declare_flags(flag_values)
    flags.DEFINE_bool(
        "help", False, "Show this.", short_name="h", flag_values=flag_values
    )


def _help(
    declare: Callable[[flags.FlagValues], None] | None, of_experiment: bool
) -> str:
    """The command's docstring and its flags; absl's help lists libraries' too."""
    ours = flags.FlagValues()
    _declare(ours, declare, of_experiment)
    groups = settings.groups() if of_experiment else {}
    grouped = {name for names in groups.values() for name in names}
    own = [name for name in ours if name == ours[name].name and name not in grouped]
    usage = (sys.modules["__main__"].__doc__ or "").strip()
    lines = [usage, "", "Flags and their defaults:"]
    lines += ["  --flagfile=", "      File of flags, one a line."]
    lines += [line for name in own for line in _described(ours[name])]
    for title, names in groups.items():
        lines += ["", f"{title}:"]
        lines += [line for name in names for line in _described(ours[name])]
    return "\n".join([*lines, ""])


def _described(flag: flags.Flag) -> list[str]:
    """A flag with its default, and what it does."""
    default = "" if flag.default is None else flag.default
    said = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}={default}"
    return [f"  {said}", textwrap.indent(textwrap.fill(flag.help, 74), " " * 6)]


def _log_to_stderr() -> None:
    """Our log lines are short, and on stderr: stdout is for results."""
    logging.use_absl_handler()
    # Errors only: TensorFlow logs its checkpoints, TFDS its own deprecations.
    logging.set_verbosity(logging.ERROR)
    handler = logging.get_absl_handler()
    handler.setFormatter(logging.logging.Formatter("%(message)s"))
    # Our own warnings are the exception.
    logging.logging.getLogger("mp_loop").setLevel(logging.logging.WARNING)
