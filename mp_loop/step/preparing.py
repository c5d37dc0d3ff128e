"""What is done to the inputs of a batch on the device, before the model has them.

    step = TrainStep(model, optimizer, loss, prepare=lambda x: tf.cast(x, tf.float32))
    step(images, labels)               # uint8, which travel as such

XLA never compiles it: it would fuse, and so round otherwise than `tf.data` does, or
another loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import tensorflow as tf

from mp_loop.distributed import nests

Prepare: TypeAlias = Callable[[nests.Nest], nests.Nest]


def or_unchanged(prepare: Prepare | None) -> Prepare:
    """Returns `prepare`, or, for None, what returns its argument."""
    return prepare or (lambda inputs: inputs)


def before(
    function: Callable[..., nests.Nest],
    prepare: Prepare,
    check: Callable[[nests.Nest], list[tf.Operation]] = lambda labels: [],
) -> Callable[..., nests.Nest]:
    """Returns a function of a batch that prepares its inputs and calls another.

    Args:
      function: of (inputs, labels, sample_weight).
      prepare: of the inputs.
      check: of the labels, returns what `function` must wait for.
    """

    def call(
        inputs: nests.Nest, labels: nests.Nest, sample_weight: nests.Nest = None
    ) -> nests.Nest:
        with tf.control_dependencies(check(labels)):
            return function(prepare(inputs), labels, sample_weight)

    return call
