"""Which layer computes in which dtype; the half-precision twin of a model.

    twin = half_precision_twin(model, "float16")

A layer runs in 16 bits only if it is known to be safe there: products with a
kernel (their bias gradients summed in float32), attention (its softmax in
float32), embeddings, layers that neither reduce nor broadcast, and keras_hub's
layers that are made of such. Every other layer is an
*island*: the very same float32 layer object in the model and in the twin, so
that normalization, pooling means, softmax and all that is unknown compute in
float32 on the user's own variables.
"""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from mp_loop.config import choices
from mp_loop.hardware import devices
from mp_loop.precision import layers, norms, transformer

# Neither variables nor sums, forward or backward (pooling by maximum and
# padding route each gradient to one place).
_ELEMENTWISE = (
    keras.layers.Activation,
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Cropping3D,
    keras.layers.ELU,
    keras.layers.Flatten,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
    keras.layers.Identity,
    keras.layers.LeakyReLU,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
    keras.layers.Permute,
    keras.layers.ReLU,
    keras.layers.Reshape,
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
    keras.layers.ZeroPadding3D,
)
# Rows and channels are only moved.
_GATHERS = (keras.layers.Concatenate,)
_NEED_MASTERS = (
    keras.layers.RNN,
    keras.layers.SpectralNormalization,
    keras.layers.TimeDistributed,
)
# Elementwise, as long as nothing is broadcast: the gradient would be a sum.
_MERGES = (
    keras.layers.Add,
    keras.layers.Average,
    keras.layers.Maximum,
    keras.layers.Minimum,
    keras.layers.Multiply,
    keras.layers.Subtract,
)
# Keras operations (`x + y`, `keras.ops.reshape(x, ...)`) that are likewise safe.
_ELEMENTWISE_OPERATIONS = ("Reshape", "Transpose", "Relu", "GetItem", "Squeeze")
_MERGING_OPERATIONS = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")


def half_precision_twin(
    model: keras.Model,
    dtype: str,
    float32_layers: str = "",
    float32_products: bool | None = None,
) -> keras.Model:
    """Makes the model that computes the forward and backward pass.

    Args:
      model: a built functional or Sequential Keras model whose variables are
        float32, the masters; models nested inside it are converted as well.
      dtype: "float16" or "bfloat16".
      float32_layers: regular expression; layers whose name it finds stay in
        float32.
      float32_products: multiply in float32 what is stored in 16 bits; see
        `layers.Float32Products`. Default: where this machine has no fast products
        of `dtype`.

    Returns:
      A Keras model of the same structure, with equal weights in the same order:
      16-bit copies in heavy layers, the model's own float32 variables
      elsewhere. Its last layers are float32. Regularizers are left to the
      masters. The twin is for computing; save `model`. A later change of
      `layer.trainable` needs a new twin.

    Raises:
      ValueError: unknown dtype, a model with weights other than float32, or one
        that cannot be cloned (a subclassed model), by name.

    Source: Micikevicius et al. 2017 (arXiv 1710.03740), sections 3.1 and 3.3.
    """
    _refuse_unlawful(model, dtype)
    outputs = output_operations(model)
    policy = keras.DTypePolicy(dtype)
    if float32_products is None:
        float32_products = devices.multiplies_slowly(dtype)
    product_policy = layers.Float32Products(dtype) if float32_products else policy
    stays = re.compile(float32_layers) if float32_layers else None
    calls = _calls(model)

    def convert(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return _convert_operation(layer)
        if isinstance(layer, keras.Model):  # not one that clone_model enters
            _refuse_uncloneable(layer)
        if id(layer) in outputs or (stays and stays.search(layer.name)):
            return layer
        twin = _convert_layer(layer, policy, product_policy)
        if calls[id(layer)] > 1 and _has_copies(layer):
            layers.cast_in_each_call(twin, layer)
        return twin

    return _twin(model, convert)


def keras_twin(model: keras.Model, dtype: str) -> keras.Model:
    """Makes a twin that computes every bit as Keras' mixed policy would.

    For comparison: its softmax, bias sums and pooling are of 16 bits. Where Keras
    reads a float32 variable through a cast, this twin holds a 16-bit one; what
    Keras computes in float32 (normalization) is the model's own layer, rounded.

    Args:
      model: as for `half_precision_twin`.
      dtype: "float16" for mixed_float16, "bfloat16" for mixed_bfloat16.

    Raises:
      ValueError: as `half_precision_twin`.
    """
    _refuse_unlawful(model, dtype)
    outputs = output_operations(model)
    policy, mixed = keras.DTypePolicy(dtype), keras.DTypePolicy(f"mixed_{dtype}")
    calls = _calls(model)

    def convert(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return layer
        if isinstance(layer, keras.Model):
            _refuse_uncloneable(layer)
        if id(layer) in outputs or layer.dtype_policy.name != "float32":
            return layer
        mixes = not all(variable._autocast for variable in layer.weights)
        if mixes and not layer._layers:
            return layers.Rounded(layer, dtype)
        if layer.weights and (mixes or calls[id(layer)] > 1 or _needs_masters(layer)):
            twin = layers.copy(layer, layers.twin_config(layer, mixed))
            layers.cast_in_each_call(twin, layer)
            return twin
        return layers.copy(layer, layers.twin_config(layer, policy))

    return _twin(model, convert)


def _twin(model: keras.Model, convert: Callable[[Any], Any]) -> keras.Model:
    """Clones the model layer by layer; the copies get its values."""
    twin = keras.models.clone_model(model, clone_function=convert, recursive=True)
    for master, working in pairs(model, twin):
        if working is not master:
            working.assign(keras.ops.cast(master, working.dtype))
    for master, working in zip(seeds(model), seeds(twin), strict=False):
        working.assign(master)
    return twin


def seeds(model: keras.Model) -> list[keras.Variable]:
    """Returns the states of the model's random generators, in order."""
    weights = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def pairs(
    model: keras.Model, twin: keras.Model
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Pairs the weights of a model with those of its twin, in order.

    Args:
      model: the float32 model.
      twin: what `half_precision_twin` made of it, or a twin of your own.

    Returns:
      `(master, working)` for every weight; the same object twice where shared.

    Raises:
      ValueError: the twin has other weights than the model.
    """
    masters, workings = model.weights, twin.weights
    if [tuple(v.shape) for v in masters] != [tuple(v.shape) for v in workings]:
        raise ValueError(
            f"`twin` ({twin.name}) must have the weights of `model` ({model.name}), "
            "of equal shapes in the same order."
        )
    return list(zip(masters, workings, strict=True))


def keep_on_host(model: keras.Model, twin: keras.Model) -> None:
    """Moves what a step does not read out of an accelerator's memory.

    That is: the float32 originals of frozen weights of which the twin has 16-bit
    copies. They are read when the model is evaluated or saved. Functions that were
    traced with `model` before must be traced anew.

    Args:
      model: the float32 model; it may not be trained further in what is frozen now.
      twin: what was made of it.
    """
    for master, working in pairs(model, twin):
        if working is not master and not master.trainable and not is_on_host(master):
            with tf.device("CPU:0"):
                master._value = tf.Variable(
                    master.value, trainable=False, name=master.name
                )


def is_on_host(variable: keras.Variable) -> bool:
    """Tells whether a variable lies in the memory that all programs share."""
    device = tf.DeviceSpec.from_string(variable.value.device)
    return (device.device_type, device.device_index) == ("CPU", 0)


def _convert_layer(
    layer: keras.layers.Layer,
    policy: keras.DTypePolicy,
    product_policy: keras.DTypePolicy,
    inside: bool = False,
) -> keras.layers.Layer:
    """Returns a 16-bit copy of the layer where that is safe, else the layer.

    Dropout in the model's own graph has the masks of the float32 model; `inside` a
    composite layer, where that costs a tenth of a step, it draws fewer bits.
    """
    plain = (
        layer.dtype_policy.name == "float32"  # else: the user's own choice stands
        and getattr(layer, "activity_regularizer", None) is None  # a reduction
        and getattr(layer, "quantization_mode", None) is None
        and not getattr(layer, "lora_enabled", False)
    )
    if not plain:
        return layer
    if type(layer) in layers.BIASED:
        return layers.with_float32_bias(layer, product_policy)
    if norms.can_fuse(layer):
        return norms.batch_norm(layer, product_policy)
    if norms.can_fuse_layer_norm(layer):
        return norms.layer_norm(layer, product_policy)
    if transformer.can_look_up(layer):
        return transformer.embedding(layer, policy)
    if transformer.can_number(layer):
        return transformer.position_embedding(layer, policy)
    parts = transformer.parts(layer)
    if parts:
        twins = {
            name: _convert_layer(part, policy, product_policy, inside=True)
            for name, part in parts.items()
        }
        islands = any(twins[name] is part for name, part in parts.items())
        return layer if islands else transformer.composite(layer, policy, twins)
    if type(layer) is keras.layers.MultiHeadAttention:
        gated = getattr(layer, "_gate_dense", None) is not None
        return layer if gated else transformer.attention(layer, product_policy, inside)
    if type(layer) in transformer.DROPOUTS:
        return transformer.dropout(layer, policy, few_bits=inside)
    exponential = layers.needs_float32(getattr(layer, "activation", None))
    elementwise = type(layer) in _ELEMENTWISE and not exponential
    merge = type(layer) in _MERGES and _inputs_agree(layer)
    relu = norms.relu(layer, policy)
    if relu is not None:
        return relu
    if type(layer) in _GATHERS or elementwise or merge:
        twin = type(layer).from_config(layers.twin_config(layer, policy))
        if type(layer) is keras.layers.Activation:
            twin.activation = layers.fused(layer.activation)
        return twin
    return layer


def _convert_operation(operation: keras.Operation) -> Any:
    """Returns the operation if it is safe in 16 bits, else runs it in float32."""
    name = type(operation).__name__
    if name in _ELEMENTWISE_OPERATIONS:
        return operation
    if name in _MERGING_OPERATIONS and _inputs_agree(operation):
        return operation
    return layers.InFloat32(operation)


def _has_copies(layer: keras.layers.Layer) -> bool:
    """Tells whether the layer's twin has 16-bit weights of its own."""
    heavy = (*layers.BIASED, keras.layers.MultiHeadAttention)
    parts = transformer.parts(layer).values()
    return type(layer) in heavy or any(map(_has_copies, parts))


def _calls(model: keras.Model) -> collections.Counter[int]:
    """Counts by id how often each layer is called, inside nested models as well."""
    counts = collections.Counter()
    graph = model._functional if isinstance(model, keras.Sequential) else model
    for node in itertools.chain(*graph._nodes_by_depth.values()):
        counts[id(node.operation)] += 1
        if _is_cloneable(node.operation):
            counts += _calls(node.operation)
    return counts


def _needs_masters(layer: keras.layers.Layer) -> bool:
    """Tells whether a call reads a weight at each time step, or writes to one."""
    inner = layer._flatten_layers()
    return any(isinstance(part, _NEED_MASTERS) for part in inner)


def _inputs_agree(operation: keras.Operation) -> bool:
    """Tells whether every call of the operation gets tensors of one shape."""
    shapes = [
        {tuple(tensor.shape) for tensor in node.input_tensors}
        for node in operation._inbound_nodes
    ]
    return all(len(distinct) == 1 for distinct in shapes)


def output_operations(model: keras.Model) -> set[int]:
    """Returns ids of the layers that make the model's outputs, nested ones opened."""
    found = set()
    for tensor in keras.tree.flatten(model.outputs):
        operation = tensor._keras_history.operation
        if _is_cloneable(operation):
            found |= output_operations(operation)
        else:
            found.add(id(operation))
    return found


def _is_cloneable(layer: Any) -> bool:
    is_graph = isinstance(layer, keras.Sequential) or hasattr(layer, "operations")
    return isinstance(layer, keras.Model) and is_graph and bool(layer.built)


def _refuse_unlawful(model: keras.Model, dtype: str) -> None:
    if dtype not in choices.HALF_PRECISIONS:
        raise ValueError(f"`dtype` ({dtype}) must be one of {choices.HALF_PRECISIONS}.")
    _refuse_uncloneable(model)
    for variable in model.weights:
        if variable.dtype in choices.HALF_PRECISIONS:
            raise ValueError(
                f"`model` ({model.name}) must have float32 weights: "
                f"{variable.path} is {variable.dtype}."
            )


def _refuse_uncloneable(model: keras.Model) -> None:
    if _is_cloneable(model):
        return
    raise ValueError(
        f"`model` ({type(model).__name__} '{model.name}') must be a built functional "
        "or Sequential model to be converted; a subclassed one cannot be cloned: "
        "build its 16-bit twin yourself and pass it as `twin`."
    )
