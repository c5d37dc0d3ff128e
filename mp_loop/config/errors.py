"""Errors that are the user's: bad input, told in one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator


class UsageError(ValueError):
    """Bad input; the message is one line: the flag, its value and what is allowed."""


class RecordError(UsageError):
    """A run folder cannot be used as asked; the message is one line."""


class DataError(ValueError):
    """A data set cannot be used; the message is one line."""


class ModelError(ValueError):
    """A model cannot be built, loaded or used; the message is one line."""


@contextlib.contextmanager
def bad_input(*kinds: type[Exception], flag: str = "", value: str = "") -> Iterator:
    """Inside, an exception of these kinds is the user's: it becomes UsageError.

    Args:
      *kinds: types of exceptions.
      flag: the flag that is being used, for messages that do not name it.
      value: its value.
    """
    try:
        yield
    except kinds as error:
        said = re.sub(r"^`(\w+)` \('?(.*?)'?\)", r"--\1 (\2)", one_line(error))
        if flag and not said.startswith("--"):
            said = f"--{flag} ({value}): {said}"
        raise UsageError(said) from error


def because(what: str, why: object) -> str:
    """Returns "what: why." as one line of at most some 400 characters."""
    return f"{what}: {one_line(why)[:300].rstrip('. ')}."


def one_line(error: object) -> str:
    """The message of an error on one line; its type where it has no message."""
    return " ".join(str(error).split()) or type(error).__name__
