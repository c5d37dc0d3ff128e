"""The arguments of a step."""

from __future__ import annotations

import keras

from mp_loop.config import choices


def check(
    model: keras.Model, precision: str, clip_norm: float, accumulate_steps: int
) -> None:
    """Refuses arguments that are out of range; see `TrainStep`.

    Raises:
      ValueError: by name.
    """
    if not model.built and not model.weights:
        raise ValueError(
            f"`model` ({model.name}) must be built: begin a Sequential with "
            "`keras.Input(shape)`, or call the model on a batch first."
        )
    if precision not in choices.PRECISIONS:
        raise ValueError(
            f"`precision` ({precision}) must be one of {choices.PRECISIONS}."
        )
    if not clip_norm >= 0:
        raise ValueError(f"`clip_norm` ({clip_norm}) must be at least 0.")
    if accumulate_steps < 1:
        raise ValueError(f"`accumulate_steps` ({accumulate_steps}) must be at least 1.")
