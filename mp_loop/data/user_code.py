"""Functions of users, by name: `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from mp_loop.config import errors


def function(
    given: str,
    name: str,
    error_type: type[ValueError],
    arguments: Sequence[object],
    told: str,
) -> Callable[..., Any]:
    """Imports a function.

    Args:
      given: how a user gave it, for messages: "`model` ('package.module:function')".
      name: `package.module:function`.
      error_type: of the errors.
      arguments: such as it will be called with.
      told: what these are, for messages.

    Raises:
      error_type: there is none, its module fails, or it takes other arguments.
    """
    module_name, _, function_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # A user's module can raise any type.
        raise error_type(errors.because(f"{given} cannot be found", error)) from error
    if not callable(found):
        raise error_type(f"{given} must be a function.")
    try:
        inspect.signature(found).bind(*arguments)
    except TypeError as error:
        raise error_type(f"{given} must take {told}: {error}.") from error
    except ValueError:
        pass  # Written in C: its signature is unknown.
    return found


def call(
    given: str,
    found: Callable[..., Any],
    error_type: type[ValueError],
    *arguments: object,
) -> Any:
    """Calls a user's function; raises `error_type` if it raises anything."""
    try:
        return found(*arguments)
    except Exception as error:  # A user's function can raise any type.
        raised = f"{type(error).__name__}: {error}"
        raise error_type(errors.because(f"{given} raised", raised)) from error
