"""Our loop and Keras' on one experiment, compared bit by bit after every step.

    proof = prove(config)       # `python -m mp_loop.compare --exact`

This is what `python -m mp_loop.compare --exact` shows.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from mp_loop.config import errors, fields, settings
from mp_loop.run import build

if TYPE_CHECKING:
    from mp_loop.comparison import bitwise
    from mp_loop.distributed import nests


def prove(config: settings.Config) -> bitwise.Proof:
    """Takes the steps of an experiment with both loops.

    Args:
      config: of the experiment, its precision resolved; `loop` does not matter.

    Raises:
      UsageError: the settings do not suit both loops.
    """
    ours, theirs = configs(config)
    # Keras' first: what the layers of a model are called depends on the order.
    theirs = build.from_settings(theirs)
    ours = build.from_settings(ours)
    # With TensorFlow, which `build` prepares and starts.
    from mp_loop.comparison import bitwise

    def batches() -> nests.Batches:
        for epoch in itertools.count():
            yield from ours.batches(epoch)

    return bitwise.prove(ours.step, theirs.step, batches(), ours.total_steps)


def configs(config: settings.Config) -> tuple[settings.Config, settings.Config]:
    """The settings of our loop with Keras' arithmetic, and those of Keras' loop.

    Raises:
      UsageError: the settings do not suit both loops.
    """
    ours: dict[str, fields.Value] = {"loop": "custom", "keras_arithmetic": True}
    if config.loss_scale_kind == "dynamic":
        ours["scale_preset"] = "keras"
    jit_compile = config.training.jit_compile
    common = {
        "deterministic": True,
        # A compiler may fuse, and so round, the two loops differently.
        "jit_compile": "off" if jit_compile == "auto" else jit_compile,
        "head_epochs": 0,  # which trains less of the same model
    }
    with errors.bad_input(ValueError):
        return (
            config.replace(**ours, **common),
            config.replace(loop="keras", **common),
        )
