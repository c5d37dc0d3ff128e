r"""Converts images into a store that is read as needed: `python -m mp_loop.convert`.

    python -m mp_loop.convert --dataset=folder:photos --image_size=160 \
        --output_dir=photos.records
    python -m mp_loop.train --dataset=array_record:photos.records --image_size=160

The folder holds both splits in ArrayRecord files, the images as they were, byte for
byte: a run has the same bits as on the photos or the TFDS data set. All images are
decoded once, and what is bad is named. A run with the same --image_size and --crop_pct
need not read them all again to begin.

Exit codes:

    0    done
    2    bad input: one line on stderr, nothing written
    3    the folder could not be written
    129, 130, 143    SIGHUP, SIGINT or SIGTERM: nothing is left that looks finished
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable

from absl import flags

from mp_loop.cli import app, outcomes, signals
from mp_loop.config import errors, names, sections, settings
from mp_loop.hardware import startup
from mp_loop.rendering import numbers, whole_files
from mp_loop.run import files

_FLAGS = (
    "dataset", "data_dir", "image_size", "crop_pct", "validation_fraction",
    "skip_bad_examples",
)  # fmt: skip
_SECONDS = 5.0  # between two lines of progress


def declare(flag_values: flags.FlagValues) -> None:
    """Declares the flags of this command."""
    kinds = {str: flags.DEFINE_string, bool: flags.DEFINE_bool}
    kinds |= {int: flags.DEFINE_integer, float: flags.DEFINE_float}
    for field in dataclasses.fields(sections.Data):
        if field.name in _FLAGS:
            define = kinds[type(field.default)]
            text = field.metadata["help"]
            define(field.name, field.default, text, flag_values=flag_values)
    text = "New folder for the store (required)."
    flags.DEFINE_string("output_dir", "", text, flag_values=flag_values)


class _Stopped(Exception):
    """A signal asked to stop; its number is the argument."""


class _Progress:
    """Tells on stderr how many images are done."""

    def __init__(self, total: int, asked: Callable[[], int]):
        """Takes the number of images, and what tells of a signal."""
        self._total, self._done, self._asked = total, 0, asked
        self._began = self._told = time.monotonic()

    def __call__(self) -> None:
        """Counts one.

        Raises:
          _Stopped: a signal asked to stop.
        """
        if number := self._asked():
            raise _Stopped(number)
        self._done += 1
        now = time.monotonic()
        if now - self._told < _SECONDS:
            return
        self._told = now
        left = (now - self._began) / self._done * (self._total - self._done)
        print(
            f"{self._done}/{self._total} images, {numbers.duration(left)} left",
            file=sys.stderr,
        )


def run(_config: settings.Config, flag_values: flags.FlagValues) -> int:
    """Converts; returns the exit code."""
    with errors.bad_input(ValueError):
        data = sections.Data(**{name: flag_values[name].value for name in _FLAGS})
    names.check_data_set(data)
    output = _output(flag_values.output_dir)
    startup.prefer_onednn()
    with startup.quiet_start():
        from mp_loop.data import record_writing

    try:
        with (
            errors.bad_input(errors.DataError, flag="dataset", value=data.dataset),
            signals.stop_requested() as asked,
        ):
            shown = _Progress(record_writing.count(data), asked)
            temporary = whole_files.temporary(output)
            temporary.mkdir()
            with whole_files.replacing(output, temporary):
                manifest = record_writing.write(data, temporary, shown)
                files.flush_tree(temporary)
    except _Stopped as stop:
        print("Interrupted: nothing was written.", file=sys.stderr)
        return outcomes.signal_code(stop.args[0])
    except OSError as error:
        why = error.strerror or errors.one_line(error)
        print(f"{output} cannot be written: {why}.", file=sys.stderr)
        return outcomes.NOT_WRITABLE
    train, test = (manifest["splits"][split]["count"] for split in ("train", "test"))
    print(
        f"{train} images to train on and {test} to evaluate on, of "
        f"{len(manifest['class_names'])} classes: --dataset=array_record:{output}"
    )
    return outcomes.DONE


def _output(given: str) -> pathlib.Path:
    """The folder to write, which holds nothing; what was left of it is removed."""
    if not given:
        raise errors.UsageError("--output_dir must name a new folder for the store.")
    folder = pathlib.Path(given)
    named = f"--output_dir ({given})"
    try:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise errors.UsageError(f"{named} must be new or empty.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        for path in folder.parent.glob(f".{folder.name}.*"):
            if files.is_leftover(path):
                whole_files.remove(path)
    except OSError as error:
        raise errors.UsageError(
            f"{named} must be writable: {error.strerror}."
        ) from error
    return folder


if __name__ == "__main__":
    app.main(run, declare, of_experiment=False)
