"""Operations and layers that compute in float32 between 16-bit tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class InFloat32(keras.Operation):
    """Runs a Keras operation (`keras.ops.mean(x)` in a graph, say) in float32."""

    def __init__(self, operation: keras.Operation):
        super().__init__()
        self._operation = operation

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._operation.call, tf.cast, args, kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._operation.compute_output_spec, _spec, args, kwargs)

    def _run(self, call: Callable, cast: Callable, args: tuple, kwargs: dict) -> Any:
        def widen(x: Any) -> Any:
            narrow = keras.backend.standardize_dtype(getattr(x, "dtype", "int32"))
            return cast(x, "float32") if narrow in ("float16", "bfloat16") else x

        args, kwargs = keras.tree.map_structure(widen, (args, kwargs))
        return call(*args, **kwargs)


def _spec(tensor: keras.KerasTensor, dtype: str) -> keras.KerasTensor:
    return keras.KerasTensor(tensor.shape, dtype, name=tensor.name)


class Rounded(keras.layers.Layer):
    """Calls a float32 layer, and rounds its outputs to 16 bits."""

    def __init__(self, layer: keras.layers.Layer, dtype: str):
        super().__init__(dtype="float32", name=layer.name)
        self._layer = layer
        self._rounded_dtype = dtype
        self.supports_masking = True

    def call(self, inputs: Any, mask: Any = None) -> Any:
        return keras.ops.cast(self._layer(inputs), self._rounded_dtype)
