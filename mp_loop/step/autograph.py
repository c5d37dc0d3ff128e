"""AutoGraph for a user's loss function, and for nothing else.

Our functions branch on no tensor, and Keras' neither: Keras traces its own training
step unconverted. Converting both took most of the time of a trace. So every
`tf.function` here is made with `autograph=False`, and a loss goes through `convert`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import tensorflow as tf
from tensorflow.python.autograph.core import ag_ctx

# Packages whose functions need no conversion.
_PLAIN = ("keras", "mp_loop")


def convert(loss: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Lets a user's loss function branch on tensors, as inside any `tf.function`.

    Args:
      loss: a `keras.losses.Loss` or a function.

    Returns:
      What to call instead; `loss` itself where no user wrote a function.
    """
    package = (getattr(loss, "__module__", None) or "").split(".")[0]
    if not inspect.isfunction(loss) or package in _PLAIN:
        return loss
    enabled = ag_ctx.ControlStatusCtx(status=ag_ctx.Status.ENABLED)
    return tf.__internal__.autograph.tf_convert(loss, enabled)
