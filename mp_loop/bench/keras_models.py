"""The float32 Keras models of the benchmark's workloads.

    model = build_model("resnet20")       # the same weights on every call

`mp_loop.bench.torch_models` has the same architectures in PyTorch.
"""

from __future__ import annotations

import keras

from mp_loop.bench import workloads
from mp_loop.models import catalog, heads, language, small_networks, trainable_layers

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build_model(name: str) -> keras.Model:
    """Builds the float32 model of a workload, with the same weights every time."""
    keras.utils.set_random_seed(0)
    workload = workloads.WORKLOADS[name]
    if workload.is_update:
        return _chain(workload.width, workload.layers)
    if name == "bert":
        return _bert(workload)
    if workload.vocabulary:
        return _transformer(workload)
    if name.startswith("transfer"):
        return _transfer(workload, name == "transfer_head")
    if len(workload.shape) == 1:
        inputs = x = keras.Input(workload.shape)
        for _ in range(workload.layers):
            x = keras.layers.Dense(workload.width, activation="relu")(x)
        return keras.Model(inputs, keras.layers.Dense(workload.classes)(x))
    known = {"vit": "vit_tiny"}.get(name, name)
    return catalog.build(known, workload.shape, workload.classes)


def _chain(width: int, layers: int) -> keras.Model:
    inputs = x = keras.Input((width,))
    for _ in range(layers):
        x = keras.layers.Dense(width, use_bias=False)(x)
    return keras.Model(inputs, keras.layers.Identity()(x))


def _transformer(workload: workloads.Workload) -> keras.Model:
    """An encoder with a classifier on the mean over positions."""
    width = workload.width
    inputs = keras.Input(workload.shape, dtype="int32")
    x = keras.layers.Embedding(workload.vocabulary, width)(inputs)
    x = small_networks.PositionEmbedding()(x)
    for _ in range(workload.layers):
        x = small_networks.encoder_block(x, width, workloads.HEADS)
    x = keras.layers.LayerNormalization(epsilon=1e-6)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(workload.classes)(x))


def _bert(workload: workloads.Workload) -> keras.Model:
    """As `_transformer`, of keras-hub's layers; random weights."""
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=workload.vocabulary,
        num_layers=workload.layers,
        num_heads=12,
        hidden_dim=workload.width,
        intermediate_dim=4 * workload.width,
        max_sequence_length=512,
    )
    return language.with_head(
        backbone, workload.shape[0], workload.classes, dropout=0.1
    )


def _transfer(workload: workloads.Workload, head: bool) -> keras.Model:
    """MobileNetV2 with random weights, the last layer trained alone or not."""
    features = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=workload.shape
    )
    model = heads.with_head(features, workload.classes)
    trainable_layers.freeze(model, "(?i)bn")
    if head:
        trainable_layers.TrainableLayers(model).head_alone()
    return model
