"""Moving averages of the weights, where the optimizer keeps them.

    with averaging.averaged(step):
        evaluate(...)            # of the averages
    # the model holds its weights again, bit for bit

Keras' optimizers keep them (`use_ema`), a skipped step leaves them as they were, and
they are part of a checkpoint as all slots are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from mp_loop.step import protocol


@contextlib.contextmanager
def averaged(step: protocol.Step) -> Iterator[None]:
    """Inside, the step's model holds the averages of its trained weights.

    Before the first update there is nothing to average, and nothing changes. Call
    `step.export` before.
    """
    optimizer = step.optimizer
    if not optimizer.use_ema or not optimizer.iterations.value.numpy():
        yield
        return
    trained = step.model.trainable_variables
    weights = [tf.identity(variable.value) for variable in trained]
    optimizer.finalize_variable_values(trained)
    try:
        yield
    finally:
        for variable, weight in zip(trained, weights, strict=True):
            variable.value.assign(weight)
