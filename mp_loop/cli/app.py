"""The shell that every command shares: flags in, one-line errors, exit code out.

    def run(config: settings.Config, flag_values) -> int | None: ...

    if __name__ == "__main__":
        app.main(run)

Bad input ends a command with one line on stderr and exit code 2. Import this
module before TensorFlow (it does not import it): it silences TensorFlow's C++
log, unless the user's environment asks for it, and a bad flag is told at once.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import re
import signal
import stat
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence

from absl import flags, logging

from mp_loop.config import errors, settings

# Read once, when TensorFlow is loaded: 2 keeps errors only.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


BAD_INPUT = (errors.UsageError, errors.RecordError)


def parse(
    argv: Sequence[str],
    declare: Callable[[flags.FlagValues], None] | None = None,
    flag_values: flags.FlagValues | None = None,
    of_experiment: bool = True,
) -> tuple[settings.Config, flags.FlagValues]:
    """Parses a command line into the experiment it describes.

    Args:
      argv: the program's name, then its arguments.
      declare: declares the command's own flags on the flag values it is given.
      flag_values: where the flags are declared; default: a fresh object.
      of_experiment: whether the flags of an experiment are declared.

    Returns:
      The experiment, and the parsed flags (those of `declare`, and `help`).

    Raises:
      UsageError: a flag is unknown, malformed, unlawful or contradicts another;
        a word is left over; a flagfile cannot be read, or includes itself.
    """
    if flag_values is None:
        flag_values = flags.FlagValues()
    _declare(flag_values, declare, of_experiment)
    _refuse_endless_flagfiles(argv)
    warnings = io.StringIO()
    try:
        # absl ignores a flagfile that includes itself, with a warning on stderr.
        with contextlib.redirect_stderr(warnings):
            leftover = flag_values(list(argv))[1:]
    except UnicodeDecodeError as error:
        raise errors.UsageError(f"--flagfile must be UTF-8 text: {error}.") from error
    except (flags.Error, ValueError) as error:
        said = errors.one_line(error).removeprefix("ERROR:: ")
        raise errors.UsageError(said) from error
    if "circular flagfile" in warnings.getvalue():
        name = warnings.getvalue().split("Ignoring flagfile:")[-1].strip()
        raise errors.UsageError(f"--flagfile ({name}) must not include itself.")
    if any(re.fullmatch("--?flagfile=", word) for word in argv):
        raise errors.UsageError("--flagfile () must name a file.")
    if leftover:
        raise errors.UsageError(
            f"Left-over words ({' '.join(leftover)}): every argument must be a "
            "flag, --name=value."
        )
    if not of_experiment:
        return settings.Config(), flag_values
    try:
        config = settings.Config.from_flags(flag_values)
    except (ValueError, OverflowError) as error:
        raise errors.UsageError(errors.one_line(error)) from error
    for name, value in config.values().items():
        # A flagfile's trailing comment would become part of the value.
        if isinstance(value, str) and re.search(r"\s#", value):
            raise errors.UsageError(
                f"--{name} ({value}) must not hold a comment: in a flagfile a "
                "comment takes a line of its own."
            )
    return config, flag_values


def main(
    run: Callable[[settings.Config, flags.FlagValues], int | None],
    declare: Callable[[flags.FlagValues], None] | None = None,
    bad_input: Sequence[type[Exception]] = (),
    of_experiment: bool = True,
) -> None:
    """Parses `sys.argv`, calls `run(settings, flag_values)`, exits with its code.

    Args:
      run: the command; returns its exit code, None for 0.
      declare: declares the command's own flags.
      bad_input: more kinds of exceptions that are the user's, besides
        `BAD_INPUT`: they end the command with one line and exit code 2.
      of_experiment: whether the command takes an experiment's flags.

    Raises:
      SystemExit: always.
    """
    try:
        config, flag_values = parse(sys.argv, declare, flags.FLAGS, of_experiment)
        if flag_values.help:
            sys.stdout.write(_help(declare, of_experiment))
            sys.exit(0)
        _log_to_stderr()
        status = run(config, flag_values)
    except (*BAD_INPUT, *bad_input) as error:
        sys.stderr.write(errors.one_line(error) + "\n")
        status = 2
    except KeyboardInterrupt:  # Where nothing needed saving.
        sys.stderr.write("Interrupted.\n")
        status = 130
    sys.exit(status or 0)


def new_folder(output_dir: str, what: str) -> pathlib.Path:
    """Makes the folder of a command's results.

    Args:
      output_dir: its path.
      what: what is not continued in a folder that holds something, "a comparison".

    Raises:
      UsageError: it is not named, in use, or cannot be made.
    """
    if not output_dir:
        raise errors.UsageError(f"--output_dir must name a folder for {what}.")
    folder = pathlib.Path(output_dir)
    try:
        if folder.exists() and not folder.is_dir():
            raise errors.UsageError(f"--output_dir ({output_dir}) must be a folder.")
        if folder.exists() and any(folder.iterdir()):
            raise errors.UsageError(
                f"--output_dir ({output_dir}) must be new or empty: {what} is not "
                "continued."
            )
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UsageError(
            f"--output_dir ({output_dir}) must be writable: {error.strerror}."
        ) from error
    return folder


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[], int]]:
    """Inside, the first SIGINT or SIGTERM is only noted; a second SIGINT stops.

    Yields:
      A function that returns the number of the first signal that came, or 0.
    """
    came: list[int] = []

    def note(number: int, _frame: object) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse_endless_flagfiles(argv: Sequence[str]) -> None:
    """Refuses devices, such as /dev/zero, that absl would read for ever."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name = re.sub("^--?flagfile(=|$)", "", word)
        if name != word and os.path.exists(path := name or following):
            mode = os.stat(path).st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                raise errors.UsageError(
                    f"--flagfile ({path}) must be a file, not a device."
                )


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
    lines = ["  --flagfile=", "      File of flags, one a line."]
    for name in ours:
        flag = ours[name]
        if name != flag.name:  # A short name.
            continue
        default = "" if flag.default is None else flag.default
        said = f"--[no]{name}" if flag.boolean else f"--{name}={default}"
        lines += [f"  {said}", textwrap.indent(textwrap.fill(flag.help, 74), " " * 6)]
    usage = (sys.modules["__main__"].__doc__ or "").strip()
    return "\n".join([usage, "", "Flags and their defaults:", *lines, ""])


def _log_to_stderr() -> None:
    """Our log lines are short, and on stderr: stdout is for results."""
    logging.use_absl_handler()
    # Errors only: TensorFlow logs its checkpoints, TFDS its own deprecations.
    logging.set_verbosity(logging.ERROR)
    handler = logging.get_absl_handler()
    handler.setFormatter(logging.logging.Formatter("%(message)s"))
    # Our own warnings are the exception.
    logging.logging.getLogger("mp_loop").setLevel(logging.logging.WARNING)
