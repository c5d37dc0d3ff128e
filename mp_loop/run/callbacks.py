"""Keras callbacks of a user's own, told of the lines of a run.

    called = callbacks.of_function("package.module:function", experiment)
    called(line)            # of metrics, or of an evaluation
    called.close()

They look and do not steer: what they raise is told, and they are told no more.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import keras

from mp_loop.config import errors, json_values
from mp_loop.data import user_code
from mp_loop.run import experiment, strict_json

logger = logging.getLogger(__name__)


class Callbacks:
    """Tells callbacks what `fit` would: batches are lines, epochs are evaluations."""

    def __init__(
        self,
        found: Sequence[keras.callbacks.Callback],
        model: keras.Model,
        params: Mapping[str, int],
    ):
        """Begins; the model's weights are current whenever an evaluation is told.

        Args:
          found: the callbacks.
          model: the user's float32 model.
          params: `epochs`, and `steps` in one of them.
        """
        self._callbacks = list(found)
        self._steps = params["steps"]
        self._logs: dict[str, float] = {}
        self._tell("set_params", dict(params))
        self._tell("set_model", model)
        self._tell("on_train_begin", {})

    def __call__(self, line: json_values.Object) -> None:
        """Tells of a line of metrics, or of an evaluation."""
        step = line["step"]
        numbers = {
            name: value
            for name, value in strict_json.to_python(line).items()
            if name != "step" and isinstance(value, int | float)
        }
        if "eval_loss" not in line:
            self._logs = numbers
            self._tell("on_train_batch_end", step - 1, numbers)
            return
        told = {f"val_{name[5:]}": value for name, value in numbers.items()}
        epoch = math.ceil(step / self._steps) - 1
        self._tell("on_epoch_end", epoch, {**self._logs, **told})

    def close(self) -> None:
        """Tells of the end."""
        self._tell("on_train_end", dict(self._logs))

    def _tell(self, method: str, *arguments: object) -> None:
        for callback in list(self._callbacks):
            try:
                getattr(callback, method)(*arguments)
            except Exception as error:  # A user's method can raise any type.
                self._callbacks.remove(callback)
                logger.warning(
                    "--callbacks: %s.%s raised %s: %s; it is told no more.",
                    type(callback).__name__,
                    method,
                    type(error).__name__,
                    errors.one_line(error),
                )


def of_function(name: str, built: experiment.Experiment) -> Callbacks | None:
    """Calls a user's function for callbacks.

    Args:
      name: `package.module:function`, of the settings by name, which returns a
        `keras.callbacks.Callback` or a list of them; "": there are none.
      built: what is trained.

    Raises:
      UsageError: there is no such function, it fails, or it returns something else.
    """
    if not name:
        return None
    given = f"--callbacks ({name})"
    config = built.config
    values = config.values()
    told = "one argument, the settings"
    function = user_code.function(given, name, errors.UsageError, [values], told)
    found = user_code.call(given, function, errors.UsageError, values)
    found = found if isinstance(found, list | tuple) else [found]
    if not all(isinstance(one, keras.callbacks.Callback) for one in found):
        raise errors.UsageError(
            f"{given} must return a keras.callbacks.Callback, or a list of them."
        )
    params = {"epochs": config.training.epochs, "steps": built.steps_per_epoch}
    return Callbacks(found, built.model, params)
