"""Activations of 16-bit tensors, computed in float32.

fused(activation)              16-bit in and out, one loop each way
needs_float32(activation)      whether its output must be float32, too
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import keras
import tensorflow as tf

from mp_loop.operations import again, calls, differentiation, emission
from mp_loop.precision import origins

# Activations that exponentiate and sum: never below float32.
FLOAT32_ACTIVATIONS = ("softmax", "log_softmax", "sparsemax", "exponential")


def needs_float32(activation: object) -> bool:
    """Tells whether a Keras activation function reduces or exponentiates."""
    return getattr(activation, "__name__", None) in FLOAT32_ACTIVATIONS


@functools.cache
def fused(
    activation: Callable[[tf.Tensor], tf.Tensor],
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Computes an activation of a 16-bit tensor in one pass, in float32.

    Keras computes GELU in 16 bits as a dozen operations, each of which rounds, takes
    a pass over memory, and is kept for the backward pass. Here XLA makes one loop of
    them, forward and backward, between which the 16-bit input alone is kept; of
    ReLU6, whose 16-bit kernel for processors is slow, the output.

    Args:
      activation: elementwise function of Keras.

    Returns:
      A function of a tensor of any dtype, to the same dtype, or float32 where the last
      operation of a function that is not known here is of float32.
    """
    if activation in _NARROW or needs_float32(activation):
        return activation
    if activation not in _FUSED and not _is_gelu_of_keras_hub(activation):
        return functools.partial(_by_operation, activation)

    def in_float32(x: tf.Tensor) -> tf.Tensor:
        return tf.cast(activation(tf.cast(x, tf.float32)), x.dtype)

    @tf.function(jit_compile=True, autograph=False)
    def backward(x: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = in_float32(x)
        return tape.gradient(y, x, dy)

    forward = tf.function(in_float32, jit_compile=True, autograph=False)
    keeps_output = activation is keras.activations.relu6

    @differentiation.custom_gradient
    def activate(x: tf.Tensor) -> again.WithGradient:
        y = forward(x)
        kept = y if keeps_output else x
        return y, lambda dy: backward(*again.after([dy], [kept]), dy)

    def compute(x: tf.Tensor) -> tf.Tensor:
        if x.dtype == tf.float32:
            return activation(x)
        y = activate(x)
        if not keeps_output and not tf.executing_eagerly():  # there, y would hold x
            origins.note(y, origins.Activation(forward, x))
        return y

    return compute


def _by_operation(
    activation: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor
) -> tf.Tensor:
    """Computes an activation that a user wrote, its operations cast one by one."""
    if x.dtype == tf.float32:
        return activation(x)
    how = emission.Emission(x.dtype)
    return calls.trace(activation, x, x.dtype).emit(how)


_NARROW = (keras.activations.linear, keras.activations.relu)
_FUSED = (
    keras.activations.celu,
    keras.activations.elu,
    keras.activations.gelu,
    keras.activations.log_sigmoid,
    keras.activations.mish,
    keras.activations.relu6,
    keras.activations.selu,
    keras.activations.sigmoid,
    keras.activations.silu,
    keras.activations.softplus,
    keras.activations.tanh,
)


def _is_gelu_of_keras_hub(activation: object) -> bool:
    """Tells whether this is the GELU of BERT and GPT-2, which has no public name."""
    module, name = (getattr(activation, f"__{key}__", "") for key in ("module", "name"))
    return module.startswith("keras_hub.") and name == "gelu_approximate"
