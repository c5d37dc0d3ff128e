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
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from mp_loop import devices, layers, norm, pairing, transformer

HALF_PRECISIONS = ("float16", "bfloat16")

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
      A Keras model of the same structure, with equal weights (see `pairs`): 16-bit
      copies in heavy layers, the model's own float32 variables elsewhere. Its last
      layers are float32. Regularizers are left to the masters. The twin is for
      computing; save `model`. A later change of `layer.trainable` needs a new twin.

    Raises:
      ValueError: unknown dtype, a model with weights other than float32, one that
        cannot be cloned (a subclassed model), or a weight of several layers, by name.

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

    return converted(model, convert)


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

    return converted(model, convert)


def converted(model: keras.Model, convert: Callable[[Any], Any]) -> keras.Model:
    """Clones a model layer by layer; the copies get its values.

    Args:
      model: a built functional or Sequential model.
      convert: from a layer, or another operation, to what stands for it in the clone:
        a copy, or the same object. It is called once for each, and for no model that
        is a graph itself: these are entered.

    Returns:
      A model for which `pairs` and `seed_pairs` know what was made of what.

    Raises:
      ValueError: a copy has other weights than its layer, or the graph is not all
        that a model computes, by name.
    """
    _refuse_uncloneable(model)
    for operation in _operations(model):
        if _is_graph(operation):
            _refuse_uncloneable(operation)

    def recorded(layer: Any) -> Any:
        copy = convert(layer)
        if copy is not layer and isinstance(copy, keras.layers.Layer):
            pairing.record(layer, copy)
        return copy

    twin = keras.models.clone_model(model, clone_function=recorded, recursive=True)
    pairing.record(model, twin)
    for master, working in [*pairs(model, twin), *seed_pairs(model, twin)]:
        if working is not master:
            working.assign(keras.ops.cast(master, working.dtype))
    return twin


def seeds(model: keras.Model) -> list[keras.Variable]:
    """Returns the states of the model's random generators, in order."""
    weights = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def pairs(
    model: keras.Model, twin: keras.Model
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Pairs the weights of a model with those of its twin.

    A converted layer knows what it was made of. In a twin of your own, weights belong
    together by what `pairing` goes by.

    Args:
      model: the float32 model.
      twin: what was made of it, or a twin of your own, which may hold one.

    Returns:
      `(master, working)` for every weight of `model`, in its order; the same object
      twice where it is shared, or where a conversion found that nothing reads it.

    Raises:
      ValueError: not each weight has exactly one counterpart, of its shape.
    """
    working_of, master_of, known = {}, {}, set()
    masters = {id(variable) for variable in model.weights}
    workings = {id(variable) for variable in twin.weights}
    for master, working in _matches(model, twin):
        if id(master) not in masters or id(working) not in workings:
            continue
        one = working_of.setdefault(id(master), working) is working
        if not one or master_of.setdefault(id(working), master) is not master:
            raise ValueError(
                f"`model` ({model.name}): {master.path} belongs to several layers of "
                "it, or of its twin, whose copies would not stay equal. Keep these "
                "layers in float32 with `float32_layers`."
            )
        if tuple(master.shape) == tuple(working.shape):
            known |= {id(master), id(working)}
    # A model may hold layers beside its graph, which nothing made of that reads.
    made = pairing.source(twin) is model
    for layer, copy in _copies(twin) if made else ():
        if not {id(v) for v in [*layer.weights, *copy.weights]} <= known:
            raise layers.other_weights(layer)
    for variable in [*twin.weights, *([] if made else model.weights)]:
        if id(variable) not in known:
            raise ValueError(
                f"`twin` ({twin.name}) must have the weights of `model` "
                f"({model.name}): {variable.path} has no counterpart of its shape. "
                "Give layers and weights equal attributes, or equal names, in both."
            )
    return [(master, working_of.get(id(master), master)) for master in model.weights]


def seed_pairs(
    model: keras.Model, twin: keras.Model
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Pairs the states of random generators, as far as both models have them."""
    ours, theirs = ({id(v): v for v in seeds(one)} for one in (model, twin))
    twin_of = {
        id(own): other
        for own, other in _matches(model, twin)
        if id(own) in ours and id(other) in theirs
    }
    return [(own, twin_of[i]) for i, own in ours.items() if i in twin_of]


def _matches(
    model: keras.Model, twin: keras.Model
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Each variable with what was made of it; by `pairing` in a twin of your own."""
    workings = {id(variable) for variable in twin.variables}
    found = [(v, v) for v in model.variables if id(v) in workings]
    for layer, copy in _copies(twin):
        found += pairing.variables(layer, copy)
    if workings - {id(variable) for _, variable in found}:
        found += pairing.variables(model, twin)
    return found


def _copies(
    twin: keras.Model,
) -> list[tuple[keras.layers.Layer, keras.layers.Layer]]:
    """The layers of a twin that are copies, each after what it was made of."""
    inside = twin._flatten_layers(include_self=False)
    made = [(pairing.source(copy), copy) for copy in inside]
    return [(layer, copy) for layer, copy in made if layer is not None]


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
    if norm.can_fuse(layer):
        return norm.batch_norm(layer, product_policy)
    if norm.can_fuse_layer_norm(layer):
        return norm.layer_norm(layer, product_policy)
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
    relu = norm.relu(layer, policy)
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


def _operations(model: keras.Model) -> Iterator[Any]:
    """Yields what a model calls, once for each call, inside nested models as well."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    for node in itertools.chain(*graph._nodes_by_depth.values()):
        yield node.operation
        if _is_graph(node.operation):
            yield from _operations(node.operation)


def _calls(model: keras.Model) -> collections.Counter[int]:
    """Counts by id how often each layer is called."""
    return collections.Counter(map(id, _operations(model)))


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
        if _is_graph(operation):
            found |= output_operations(operation)
        else:
            found.add(id(operation))
    return found


def _is_graph(layer: Any) -> bool:
    is_graph = isinstance(layer, keras.Sequential) or hasattr(layer, "operations")
    return isinstance(layer, keras.Model) and is_graph and bool(layer.built)


def _is_cloneable(layer: Any) -> bool:
    """Tells whether the graph of a model is all that it computes."""
    owner = next(base for base in type(layer).__mro__ if "call" in vars(base))
    return _is_graph(layer) and owner.__module__.startswith("keras.src.")


def _refuse_unlawful(model: keras.Model, dtype: str) -> None:
    if dtype not in HALF_PRECISIONS:
        raise ValueError(f"`dtype` ({dtype}) must be one of {HALF_PRECISIONS}.")
    _refuse_uncloneable(model)
    for variable in model.weights:
        if variable.dtype in HALF_PRECISIONS:
            raise ValueError(
                f"`model` ({model.name}) must have float32 weights: "
                f"{variable.path} is {variable.dtype}."
            )


def _refuse_uncloneable(model: keras.Model) -> None:
    if _is_cloneable(model):
        return
    raise ValueError(
        f"`model` ({type(model).__name__} '{model.name}') must be a built functional "
        "or Sequential model, with no `call` of its own, to be converted; a subclassed "
        "one cannot be cloned: build its 16-bit twin yourself and pass it as `twin`."
    )
