"""Copies of layers under another dtype policy.

    copy(layer, twin_config(layer, policy))      its weights are copies in 16 bits
    read_in_each_call(twin, layer)               it reads the original's weights

A copy is told later what it was made of: see `pairing`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import keras
import tensorflow as tf

from mp_loop.distributed import nests
from mp_loop.precision import pairing


def under_policy(
    layer: keras.layers.Layer, policy: keras.DTypePolicy
) -> dict[str, object]:
    """The layer's config under another policy, with the float32 layers in it."""

    def replaced(value: object) -> object:
        if isinstance(value, list | tuple):
            return type(value)(replaced(item) for item in value)
        if not isinstance(value, dict):
            return value
        if value.get("class_name") == "DTypePolicy":
            return policy if value["config"]["name"] == "float32" else value
        return {key: replaced(item) for key, item in value.items()}

    config = layer.get_config()
    inner = {key: replaced(value) for key, value in config.items() if key != "dtype"}
    return config | inner | {"dtype": policy}


def twin_config(
    layer: keras.layers.Layer, policy: keras.DTypePolicy
) -> dict[str, object]:
    """The layer's config for a copy under another policy.

    Initializers, regularizers and constraints belong to the masters: a copy is
    overwritten before its first use, its regularizers would overflow in
    float16 (L2 of a large kernel), and it is never updated by itself.
    """
    config = under_policy(layer, policy)
    for key in config:
        if key == "activity_regularizer":
            continue
        if key.endswith(("_regularizer", "_constraint")):
            config[key] = None
        elif key.endswith("_initializer"):
            config[key] = "zeros"
    return config


def copy(
    layer: keras.layers.Layer, config: dict[str, object], each_call: bool = False
) -> keras.layers.Layer:
    """Makes another layer of the same type; a Lambda with the same function.

    Args:
      layer: what is copied.
      config: of the copy.
      each_call: whether the copy can `read_in_each_call`.
    """
    if not isinstance(layer, keras.layers.Lambda):
        return made(type(layer), config, each_call)
    own = {"function": layer.function, "mask": layer.mask}
    return keras.layers.Lambda(**(config | own | {"output_shape": layer._output_shape}))


def made(
    kind: type, config: dict[str, object], each_call: bool = False
) -> keras.layers.Layer:
    """Makes a layer of a kind; one that can `read_in_each_call` if `each_call`."""
    return (_casting_in_each_call(kind) if each_call else kind).from_config(config)


@contextlib.contextmanager
def under_keras_policy(name: str) -> Iterator[None]:
    """Inside, what fails is said to be what Keras' own policy cannot do.

    Args:
      name: of a model or layer that is made again and called under that policy.

    Raises:
      ValueError: in place of what was raised.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("`"):
            raise  # one of ours
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else repr(error)
        raise ValueError(
            f"`model`: {name} cannot be made again under Keras' mixed policy, to "
            f"compute as Keras does ({reason}). Train it without Keras' loop and "
            "arithmetic, or let `get_config` return all that its constructor takes."
        ) from error


def read_in_each_call(twin: keras.layers.Layer, master: keras.layers.Layer) -> None:
    """Lets a copy read the master's variables, cast anew in each of its calls.

    The gradients of the calls are then summed in float32. A layer that is called
    once has nothing to sum, and keeps its own 16-bit variables.

    Args:
      twin: a copy of `master` that was `made` for this, built or not. Under a mixed
        policy of Keras the cast is left to Keras.
      master: the built float32 layer.
    """
    # Closures hide them from tracking. Inside a call, `value` is cast by Keras.
    values = {id(variable): variable.value for variable in master.weights}
    twin.master_weights = lambda: (master, values)


def reads_masters(layer: keras.layers.Layer) -> bool:
    """Tells whether a layer reads float32 masters that are not its own variables."""
    return getattr(layer, "master_weights", None) is not None


@functools.cache
def _casting_in_each_call(base: type) -> type:
    @functools.wraps(base.call)
    def call(
        self: keras.layers.Layer, *args: nests.Nest, **kwargs: nests.Nest
    ) -> nests.Nest:
        master, values = self.master_weights()
        owners = {
            id(own): weight
            for weight, own in pairing.variables(master, self)
            if id(weight) in values and own is not weight and own.shape == weight.shape
        }
        if any(
            id(own) not in owners and id(own) not in values
            for own in base.weights.fget(self)
        ):
            raise pairing.other_weights(master)
        mapping = {
            own: tf.cast(values[id(weight)], self.variable_dtype)
            for own, weight in owners.items()
        }
        with keras.StatelessScope() as scope:
            scope.state_mapping |= mapping  # its constructor would cast
            outputs = base.call(self, *args, **kwargs)
        # What the call wrote: seeds, and weights that a layer normalizes itself.
        for variable in base.variables.fget(self):
            written = scope.state_mapping.get(id(variable))
            if written is not mapping.get(id(variable)):
                owners.get(id(variable), variable).assign(written)
        return outputs

    def weights(self: keras.layers.Layer) -> list[keras.Variable]:
        read = reads_masters(self)
        return self.master_weights()[0].weights if read else base.weights.fget(self)

    def variables(self: keras.layers.Layer) -> list[keras.Variable]:
        own = {id(v) for v in base.weights.fget(self)}
        seeds = [v for v in base.variables.fget(self) if id(v) not in own]
        return [*self.weights, *seeds]

    members = {
        "call": call,
        "variables": property(variables),
        "weights": property(weights),
        "master_weights": None,  # until `read_in_each_call`
    }
    return type(base.__name__, (base,), members)
