"""Which layer computes in which dtype; the half-precision twin of a model.

    twin = half_precision_twin(model, "float16")

Layers that earn it by time or memory have twins of their own: products with a kernel,
attention, normalization, embeddings, dropout. All others are cast operation by
operation; see `by_operation`. Either way, what reduces or exponentiates runs in
float32, forward and backward. A layer of which nothing would be of 16 bits is the very
same float32 object in the model and in the twin, and so is a last layer that makes a
row of logits.
"""

from __future__ import annotations

import collections
import dataclasses
import re

import keras
import tensorflow as tf

from mp_loop.hardware import devices
from mp_loop.operations import emission
from mp_loop.precision import (
    by_operation,
    casting,
    cloning,
    copies,
    embeddings,
    products,
)


def half_precision_twin(
    model: keras.Model,
    dtype: str,
    float32_layers: str = "",
    float32_products: bool | None = None,
    float32_outputs: bool = True,
) -> keras.Model:
    """Makes the model that computes the forward and backward pass.

    Args:
      model: a built Keras model of any kind whose variables are float32, the masters;
        models nested inside it are converted as well.
      dtype: "float16" or "bfloat16".
      float32_layers: regular expression; layers whose name it finds stay in
        float32.
      float32_products: multiply in float32 what is stored in 16 bits; see
        `products.Float32Products`. Default: where this machine has no fast products
        of `dtype`.
      float32_outputs: False: outputs that were made in 16 bits stay so, for a loss that
        takes them as they are.

    Returns:
      A Keras model with equal weights (see `pairs`): 16-bit copies in heavy layers,
      the model's own float32 variables elsewhere. A functional model keeps its
      structure. Regularizers are left to the masters. The
      twin is for computing; save `model`. A later change of `layer.trainable` needs a
      new twin.

    Raises:
      ValueError: unknown dtype, a model that is not built or has weights other than
        float32, or a weight of several layers, by name.

    Source: Micikevicius et al. 2017 (arXiv 1710.03740), sections 3.1 and 3.3.
    """
    cloning.check_dtypes(model, dtype)
    if float32_products is None:
        float32_products = devices.multiplies_slowly(dtype)
    stays = re.compile(float32_layers) if float32_layers else None
    names = {layer.name for layer in model._flatten_layers() if stays}
    how = emission.Emission(
        tf.as_dtype(dtype),
        float32_products,
        float32_scopes=frozenset(filter(stays.search, names) if stays else ()),
    )
    if not cloning.is_cloneable(model):
        return by_operation.model(model, how, float32_outputs)
    policy = keras.DTypePolicy(dtype)
    conversion = _Conversion(
        how,
        policy,
        products.Float32Products(dtype) if float32_products else policy,
        stays,
        float32_outputs,
        outputs=cloning.output_operations(model),
        calls=cloning.call_counts(model),
    )
    return cloning.clone(model, conversion)


@dataclasses.dataclass(frozen=True)
class _Conversion:
    """What becomes of each layer, and each other operation, of a functional model.

    Attributes:
      how: which 16 bits, for what has no twin of its own.
      policy: dtype of tensors and variables.
      product_policy: the same, and the dtype of products.
      stays: finds the names of layers that stay in float32; None: of none.
      float32_outputs: whether outputs that were made in 16 bits are cast.
      outputs: ids of what makes the model's outputs.
      calls: how often each layer is called, by id.
    """

    how: emission.Emission
    policy: keras.DTypePolicy
    product_policy: keras.DTypePolicy
    stays: re.Pattern[str] | None
    float32_outputs: bool
    outputs: set[int]
    calls: collections.Counter[int]

    def __call__(self, layer: keras.Operation) -> keras.Operation:
        """Returns what stands for a layer in the twin."""
        is_output = id(layer) in self.outputs
        wide = self.float32_outputs and is_output
        if not isinstance(layer, keras.layers.Layer):
            return by_operation.operation(layer, self.how, wide)
        if (
            (self.stays and self.stays.search(layer.name))
            or casting.is_foreign(layer)
            or casting.is_synchronized(layer)
        ):
            return layer
        if is_output and not embeddings.is_reversible(layer):
            if casting.is_head(layer) or not by_operation.gains(layer, self.how):
                return layer
            return by_operation.layer(layer, self.how, wide)
        each_call = self.calls[id(layer)] > 1 and casting.has_copies(layer)
        twin = casting.convert_layer(
            layer, self.policy, self.product_policy, each_call=each_call
        )
        if each_call and twin is not layer:
            copies.read_in_each_call(twin, layer)
        if twin is layer and by_operation.gains(layer, self.how):
            return by_operation.layer(layer, self.how)
        if twin is not layer and embeddings.is_reversible(layer):
            twin.multiply_by(by_operation.layer(layer, self.how, wide))
        return twin
