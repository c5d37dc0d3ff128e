"""Which layer has a twin of its own, and what that is.

A twin earns its place by measured time or memory: products with a kernel (their bias
gradients summed in float32), attention (its softmax in float32), normalization,
embeddings, dropout, and keras_hub's layers that are made of such.
"""

from __future__ import annotations

import keras

from mp_loop.precision import (
    embeddings,
    norms,
    products,
    transformer,
)


def convert_layer(
    layer: keras.layers.Layer,
    policy: keras.DTypePolicy,
    product_policy: keras.DTypePolicy,
    inside: bool = False,
    each_call: bool = False,
) -> keras.layers.Layer:
    """Returns the twin of a layer; the layer itself where it has none of its own.

    Args:
      layer: a built float32 layer.
      policy: dtype of tensors and variables.
      product_policy: the same, and the dtype of products.
      inside: whether it is part of a composite layer. Dropout in the model's own graph
        has the masks of the float32 model; inside, where that costs a tenth of a step,
        it draws fewer bits.
      each_call: whether a copy that has weights can `copies.read_in_each_call`.
    """
    plain = getattr(layer, "activity_regularizer", None) is None  # a reduction
    if not plain or has_adapters(layer) or is_foreign(layer):
        return layer
    if type(layer) in products.BIASED:
        return products.with_float32_bias(layer, product_policy, each_call)
    if norms.can_fuse(layer):
        return norms.batch_norm(layer, product_policy)
    if norms.can_fuse_layer_norm(layer):
        return norms.layer_norm(layer, product_policy)
    if embeddings.can_look_up(layer):
        return embeddings.embedding(layer, policy)
    if embeddings.can_number(layer):
        return embeddings.position_embedding(layer, policy)
    parts = transformer.parts(layer)
    if parts:
        twins = {
            name: convert_layer(part, policy, product_policy, inside=True)
            for name, part in parts.items()
        }
        islands = any(twins[name] is part for name, part in parts.items())
        if islands:
            return layer
        return transformer.composite(layer, policy, twins, each_call)
    if type(layer) is keras.layers.MultiHeadAttention:
        gated = getattr(layer, "_gate_dense", None) is not None
        if gated:
            return layer
        return transformer.attention(layer, product_policy, inside, each_call)
    if type(layer) in transformer.DROPOUTS:
        return transformer.dropout(layer, policy, few_bits=inside)
    relu = norms.relu(layer, policy)
    return layer if relu is None else relu


def is_foreign(layer: keras.layers.Layer) -> bool:
    """Tells whether a layer's own dtypes are what its user chose."""
    quantized = getattr(layer, "quantization_mode", None) is not None
    return quantized or layer.dtype_policy.name != "float32"


def is_synchronized(layer: keras.layers.Layer) -> bool:
    """Tells whether a layer, or one in it, exchanges statistics with other replicas.

    It cannot be cast operation by operation: TensorFlow refuses an exchange in a call
    that is traced apart.
    """
    return any(getattr(x, "synchronized", False) for x in layer._flatten_layers())


def has_adapters(layer: keras.layers.Layer) -> bool:
    """Tells whether a layer, or one in it, has a low-rank adapter."""
    return any(getattr(x, "lora_enabled", False) for x in layer._flatten_layers())


def is_head(layer: keras.layers.Layer) -> bool:
    """Tells whether a layer, as a model's last one, makes few numbers of an example.

    One that makes a row of logits for each token, as over a vocabulary, is a good part
    of what a language model multiplies.
    """
    rows = isinstance(layer, keras.layers.Dense | keras.layers.EinsumDense)
    if rows and len(layer._build_shapes_dict["input_shape"]) > 2:
        return layer.kernel.shape[-1] <= layer.kernel.shape[0]
    return type(layer) in products.BIASED


def has_copies(layer: keras.layers.Layer) -> bool:
    """Tells whether the layer's twin has 16-bit weights of its own."""
    heavy = (*products.BIASED, keras.layers.MultiHeadAttention)
    parts = transformer.parts(layer).values()
    return type(layer) in heavy or any(map(has_copies, parts))
