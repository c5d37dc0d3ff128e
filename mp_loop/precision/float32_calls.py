"""Layers that compute in float32 between 16-bit tensors."""

from __future__ import annotations

import keras

from mp_loop.distributed import nests


class Rounded(keras.layers.Layer):
    """Calls a float32 layer, and rounds its outputs to 16 bits."""

    def __init__(self, layer: keras.layers.Layer, dtype: str):
        super().__init__(dtype="float32", name=layer.name)
        self._layer = layer
        self._rounded_dtype = dtype
        self.supports_masking = True

    def call(self, inputs: nests.Nest, mask: nests.Nest = None) -> nests.AnyTensor:
        return keras.ops.cast(self._layer(inputs), self._rounded_dtype)
