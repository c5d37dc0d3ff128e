"""Float32 originals that no step reads, out of the accelerator's memory."""

from __future__ import annotations

import keras
import tensorflow as tf

from mp_loop.precision import pairs


def keep_on_host(model: keras.Model, twin: keras.Model) -> None:
    """Moves what a step does not read out of an accelerator's memory.

    That is: the float32 originals of frozen weights of which the twin has 16-bit
    copies. They are read when the model is evaluated or saved. Functions that were
    traced with `model` before must be traced anew.

    Args:
      model: the float32 model; it may not be trained further in what is frozen now.
      twin: what was made of it.
    """
    for master, working in pairs.of_weights(model, twin):
        if working is not master and not master.trainable and not is_on_host(master):
            with tf.device("CPU:0"):
                master._value = tf.Variable(
                    master.value, trainable=master.value.trainable, name=master.name
                )


def is_on_host(variable: keras.Variable) -> bool:
    """Tells whether a variable lies in the memory that all programs share."""
    device = tf.DeviceSpec.from_string(variable.value.device)
    return (device.device_type, device.device_index) == ("CPU", 0)
