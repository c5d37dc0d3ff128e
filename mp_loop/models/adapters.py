"""Low-rank adapters, trained in place of a model's own weights.

    adapters.enable(model, rank=4)      # Keras' own LoRA
    model.save("model.keras")           # kernels with their adapters added

Source: Hu et al. 2021, *LoRA* (arXiv 2106.09685), section 4: adapters of the query and
the value projections of attention.
"""

from __future__ import annotations

from collections.abc import Collection

import keras

from mp_loop.config import errors

# As in keras_hub's `Backbone.default_lora_layer_names`, which some models extend.
_NAMES = ("query_dense", "value_dense", "query", "value")


def enable(
    model: keras.Model, rank: int, but: Collection[keras.layers.Layer] = ()
) -> None:
    """Gives attention adapters, and freezes everything else.

    Args:
      model: a built float32 model.
      rank: of the adapters.
      but: layers that stay as trainable as they are.

    Raises:
      ModelError: no layer has a name of a projection of queries or values, or none of
        them can have an adapter.
    """
    backbone = getattr(model, "backbone", None)
    names = getattr(backbone, "default_lora_layer_names", lambda: _NAMES)()
    layers = list(model._flatten_layers(include_self=False))
    found = [
        layer
        for layer in layers
        if layer.name in names and hasattr(layer, "enable_lora") and layer.weights
    ]
    if not found:
        raise errors.ModelError(
            f"`lora_rank` ({rank}): '{model.name}' has no layer that can have an "
            f"adapter, named {' or '.join(names)}."
        )
    kept = {id(variable) for layer in but for variable in layer.variables}
    for layer in layers:
        # What a layer says of itself would be said of all layers in it.
        if not layer._layers and layer not in but:
            layer.trainable = False
    for layer in found:
        layer.trainable = True
        layer.enable_lora(rank)
        kept |= {id(layer.lora_kernel_a), id(layer.lora_kernel_b)}
    for variable in model.variables:
        if id(variable) not in kept:
            variable.trainable = False
