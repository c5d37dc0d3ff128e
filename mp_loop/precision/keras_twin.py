"""The twin that computes every bit as Keras' mixed policy would."""

from __future__ import annotations

import keras

from mp_loop.precision import cloning, copies, float32_calls

_NEED_MASTERS = (
    keras.layers.RNN,
    keras.layers.SpectralNormalization,
    keras.layers.TimeDistributed,
)


def keras_twin(model: keras.Model, dtype: str) -> keras.Model:
    """Makes a twin that computes every bit as Keras' mixed policy would.

    For comparison: its softmax, bias sums and pooling are of 16 bits. Where Keras
    reads a float32 variable through a cast, this twin holds a 16-bit one; what
    Keras computes in float32 (normalization) is the model's own layer, rounded.

    Args:
      model: as for `half_precision_twin`.
      dtype: "float16" for mixed_float16, "bfloat16" for mixed_bfloat16.

    Raises:
      ValueError: as `half_precision_twin`; or Keras cannot make a layer again under
        its policy, by name.
    """
    cloning.check_cloneable(model)
    cloning.check_dtypes(model, dtype)
    outputs = cloning.output_operations(model)
    policy, mixed = keras.DTypePolicy(dtype), keras.DTypePolicy(f"mixed_{dtype}")
    calls = cloning.call_counts(model)

    def convert(layer: keras.Operation) -> keras.Operation:
        if not isinstance(layer, keras.layers.Layer):
            return layer
        if isinstance(layer, keras.Model):
            cloning.check_cloneable(layer)
        if id(layer) in outputs or layer.dtype_policy.name != "float32":
            return layer
        mixes = not all(variable._autocast for variable in layer.weights)
        if mixes and not layer._layers:
            return float32_calls.Rounded(layer, dtype)
        with copies.under_keras_policy(
            f"layer '{layer.name}' ({type(layer).__name__})"
        ):
            return copied(layer, mixes)

    def copied(layer: keras.layers.Layer, mixes: bool) -> keras.layers.Layer:
        if layer.weights and (mixes or calls[id(layer)] > 1 or _needs_masters(layer)):
            twin = copies.copy(layer, copies.twin_config(layer, mixed), each_call=True)
            copies.read_in_each_call(twin, layer)
            return twin
        return copies.copy(layer, copies.twin_config(layer, policy))

    with copies.under_keras_policy(model.name):
        return cloning.clone(model, convert)


def _needs_masters(layer: keras.layers.Layer) -> bool:
    """Tells whether a call reads a weight at each time step, or writes to one."""
    inner = layer._flatten_layers()
    return any(isinstance(part, _NEED_MASTERS) for part in inner)
