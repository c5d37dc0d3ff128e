"""The float32 Keras models of the benchmark's workloads.

    model = build_model(workloads.WORKLOADS["resnet20"])   # the same weights every time

`mp_loop.bench.torch_models` has the same architectures in PyTorch.
"""

from __future__ import annotations

import functools

import keras

from mp_loop.bench import workloads
from mp_loop.models import catalog, heads, language, small_networks, trainable_layers

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build_model(workload: workloads.Workload) -> keras.Model:
    """Builds the float32 model of a workload, with the same weights every time.

    Its network is one of this module's, or a name of `mp_loop.models.catalog`.
    """
    keras.utils.set_random_seed(0)
    if workload.network in _NETWORKS:
        return _NETWORKS[workload.network](workload)
    return catalog.build(workload.network, workload.shape, workload.classes)


def _chain(workload: workloads.Workload) -> keras.Model:
    """Kernels that are updated; the model is never called."""
    inputs = x = keras.Input((workload.width,))
    for _ in range(workload.layers):
        x = keras.layers.Dense(workload.width, use_bias=False)(x)
    return keras.Model(inputs, keras.layers.Identity()(x))


def _mlp(workload: workloads.Workload) -> keras.Model:
    inputs = x = keras.Input(workload.shape)
    for _ in range(workload.layers):
        x = keras.layers.Dense(workload.width, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(workload.classes)(x))


def _encoder(workload: workloads.Workload) -> keras.Model:
    """An encoder with a classifier on the mean over positions."""
    width = workload.width
    inputs = keras.Input(workload.shape, dtype="int32")
    x = keras.layers.Embedding(workload.vocabulary, width)(inputs)
    x = small_networks.PositionEmbedding()(x)
    for _ in range(workload.layers):
        x = small_networks.encoder_block(x, width, workload.heads)
    x = keras.layers.LayerNormalization(epsilon=1e-6)(x)
    return _classifier(workload, inputs, x)


def _bert(workload: workloads.Workload) -> keras.Model:
    """As `_encoder`, of keras-hub's layers and with dropout."""
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=workload.vocabulary,
        num_layers=workload.layers,
        num_heads=workload.heads,
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


def _gpt2(workload: workloads.Workload) -> keras.Model:
    """A decoder with learned positions, GELU and layer norm.

    The logits of the next token come from the table of tokens, as in GPT-2.
    """
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=workload.vocabulary,
        num_layers=workload.layers,
        num_heads=workload.heads,
        hidden_dim=workload.width,
        intermediate_dim=4 * workload.width,
        max_sequence_length=workload.shape[0],
        dropout=0.0,
    )
    tokens = keras.Input(workload.shape, dtype="int32")
    x = backbone.token_embedding(tokens)
    x = keras.layers.Add()([x, backbone.position_embedding(x)])
    x = _through(backbone, x)
    if workload.predicts_tokens:
        return keras.Model(tokens, backbone.token_embedding(x, reverse=True))
    return _classifier(workload, tokens, x)


def _llama(workload: workloads.Workload) -> keras.Model:
    """A decoder with grouped queries, rotary positions, RMS norm and a gated MLP."""
    import keras_hub

    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=workload.vocabulary,
        num_layers=workload.layers,
        num_query_heads=workload.heads,
        num_key_value_heads=workload.heads // 2,
        hidden_dim=workload.width,
        intermediate_dim=4 * workload.width,
    )
    tokens = keras.Input(workload.shape, dtype="int32")
    x = _through(backbone, backbone.token_embedding(tokens))
    return _classifier(workload, tokens, x)


def _through(backbone: keras.Model, x: keras.KerasTensor) -> keras.KerasTensor:
    """The blocks of a decoder, on whole sequences: without a padding mask."""
    for layer in backbone.transformer_layers:
        x = layer(x)
    return backbone.layer_norm(x)


def _hub_vit(workload: workloads.Workload, class_token: bool) -> keras.Model:
    """A ViT of keras_hub, classified by its class token or by the mean of patches."""
    import keras_hub

    backbone = keras_hub.models.ViTBackbone(
        image_shape=workload.shape,
        patch_size=workload.patch,
        num_layers=workload.layers,
        num_heads=workload.heads,
        hidden_dim=workload.width,
        mlp_dim=4 * workload.width,
        use_class_token=class_token,
    )
    if class_token:
        logits = keras.layers.Dense(workload.classes)(backbone.output[:, 0])
        return keras.Model(backbone.input, logits)
    return _classifier(workload, backbone.input, backbone.output)


def _lstm(workload: workloads.Workload) -> keras.Model:
    """A recurrent net over tokens."""
    tokens = keras.Input(workload.shape, dtype="int32")
    x = keras.layers.Embedding(workload.vocabulary, workload.width)(tokens)
    for _ in range(workload.layers):
        x = keras.layers.LSTM(workload.width, return_sequences=True)(x)
    return _classifier(workload, tokens, x)


def _classifier(
    workload: workloads.Workload, inputs: keras.KerasTensor, x: keras.KerasTensor
) -> keras.Model:
    """A linear layer on the mean over positions."""
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(workload.classes)(x))


_NETWORKS = {
    "bert": _bert,
    "chain": _chain,
    "encoder": _encoder,
    "gpt2": _gpt2,
    "hub_vit": functools.partial(_hub_vit, class_token=True),
    "hub_vit_mean": functools.partial(_hub_vit, class_token=False),
    "llama": _llama,
    "lstm": _lstm,
    "mlp": _mlp,
    "transfer": functools.partial(_transfer, head=False),
    "transfer_head": functools.partial(_transfer, head=True),
}
