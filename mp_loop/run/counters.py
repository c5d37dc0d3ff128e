"""What the counters of a training state say, for lines of metrics and messages."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from mp_loop.step import metrics, protocol, train_state

_NAMES = ("step", "applied_steps", "skipped_steps", "forward_overflows", "rollbacks")


def read(state: train_state.TrainState) -> dict[str, int]:
    """Reads the counters of a state from the device."""
    return {name: int(getattr(state, name).numpy()) for name in _NAMES}


def skip_reasons(state: train_state.TrainState) -> dict[str, int]:
    """Returns how many steps were skipped for which of `metrics.SKIP_REASONS`.

    Reasons for which none was are left out; Keras' loop does not count them.
    """
    counts = zip(metrics.SKIP_REASONS[1:], state.skip_reasons.numpy(), strict=True)
    return {reason: int(count) for reason, count in counts if count}


def new_overflows(step: protocol.Step) -> dict[str, int]:
    """Returns, by path, in how many steps since the last call a gradient overflowed.

    Variables whose gradients did not overflow are left out.
    """
    state = step.state
    total = state.overflows.numpy()
    new = total - state.logged_overflows.numpy()
    state.logged_overflows.assign(total)
    return dict(by_path(step, new))


def by_path(step: protocol.Step, counts: Sequence[int]) -> collections.Counter[str]:
    """Adds up one count for each trainable variable by path, which two may share."""
    total: collections.Counter[str] = collections.Counter()
    for variable, count in zip(step.model.trainable_variables, counts, strict=True):
        total[variable.path] += int(count)
    return +total
