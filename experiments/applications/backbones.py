"""Small random models: every backbone of keras_hub that takes a dozen numbers.

model = backbones.build("BartBackbone")
inputs = backbones.inputs(model)
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import keras
import keras_hub
import numpy as np

from experiments.applications import composed

# What the backbones call the same thing, in one small size.
SIZES = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bucket_size": 8,
    "decoder_num_heads": 2,
    "decoder_num_layers": 1,
    "embedding_dim": 16,
    "encoder_num_heads": 2,
    "encoder_num_layers": 1,
    "filter_dim": 16,
    "head_dim": 8,
    "head_size": 8,
    "hidden_dim": 16,
    "image_shape": (32, 32, 3),
    "image_size": 32,
    "intermediate_dim": 24,
    "layer_norm_epsilon": 1e-6,
    "max_sequence_length": 16,
    "mlp_bias": False,
    "mlp_dim": 24,
    "moe_intermediate_dim": 16,
    "num_attention_heads": 2,
    "num_experts": 2,
    "num_heads": 2,
    "num_key_value_heads": 1,
    "num_layers": 2,
    "num_layers_dec": 1,
    "num_layers_enc": 1,
    "num_query_heads": 2,
    "partial_rotary_factor": 0.5,
    "patch_size": 8,
    "rope_theta": 1e4,
    "max_position_embeddings": 16,
    "shared_expert_intermediate_dim": 16,
    "shared_expert_intermediate_size": 16,
    "top_k": 2,
    "vocab_size": 50,
    "vocabulary_size": 50,
    "dropout_rate": 0.0,
}
ENCODER_AND_DECODER = {
    f"{part}_{name}": value
    for part in ("encoder", "decoder")
    for name, value in {
        "hidden_dim": 16,
        "intermediate_dim": 24,
        "num_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "layer_types": ["full_attention"],
    }.items()
}
# What only one of them has, or has otherwise.
OWN = {
    "BLIP2VisionEncoder": {
        "use_patch_bias": True,
        "use_class_token": True,
        "use_mha_bias": True,
        "use_mlp_bias": True,
        "initializer_range": 0.02,
    },
    "CSPNetBackbone": {
        "stem_filters": 8,
        "stem_kernel_size": 3,
        "stem_strides": 1,
        "stackwise_depth": [1, 1],
        "stackwise_strides": [1, 2],
        "stackwise_num_filters": [8, 16],
        "block_type": "dark_block",
        "stage_type": "dark",
    },
    "DenseNetBackbone": {"stackwise_num_repeats": [1, 2], "growth_rate": 4},
    "DINOV2Backbone": {"position_embedding_shape": (32, 32, 3)},
    "EfficientNetBackbone": {
        "stackwise_width_coefficients": [1.0, 1.0],
        "stackwise_depth_coefficients": [1.0, 1.0],
        "stackwise_kernel_sizes": [3, 3],
        "stackwise_num_repeats": [1, 2],
        "stackwise_input_filters": [8, 8],
        "stackwise_output_filters": [8, 16],
        "stackwise_expansion_ratios": [2, 2],
        "stackwise_squeeze_and_excite_ratios": [0.25, 0.25],
        "stackwise_strides": [1, 2],
        "stackwise_block_types": ["v1", "v1"],
        "num_features": 16,
        "input_shape": (32, 32, 3),
    },
    "FluxBackbone": {
        "input_channels": 8,
        "hidden_size": 16,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [2, 2, 4],
        "theta": 1e4,
        "use_bias": True,
        "image_shape": (6, 8),
        "text_shape": (6, 8),
        "image_ids_shape": (6, 3),
        "text_ids_shape": (6, 3),
        "y_shape": (8,),
    },
    "Gemma4VisionEncoder": {"output_dim": 16, "pool_size": 2},
    "Gemma3VisionEncoder": {"output_dim": 16, "pool_size": 2},
    "GPTNeoXBackbone": {"rotary_percentage": 0.5},
    "HGNetV2Backbone": {
        "stem_channels": [3, 8, 8],
        "stackwise_stage_filters": [[8, 8, 16, 1, 1, 3], [16, 8, 32, 1, 1, 3]],
        "apply_downsample": [False, True],
        "use_lightweight_conv_block": [False, False],
        "depths": [1, 1],
        "hidden_sizes": [16, 32],
        "embedding_size": 8,
        "use_learnable_affine_block": True,
        "hidden_act": "relu",
    },
    "MiTBackbone": {
        "layerwise_depths": [1, 1],
        "num_layers": 2,
        "layerwise_num_heads": [1, 2],
        "layerwise_sr_ratios": [2, 1],
        "max_drop_path_rate": 0.1,
        "layerwise_patch_sizes": [7, 3],
        "layerwise_strides": [4, 2],
        "hidden_dims": [8, 16],
    },
    "MobileNetBackbone": {
        "stackwise_expansion": [[8, 16], [24]],
        "stackwise_num_blocks": [2, 1],
        "stackwise_num_filters": [[8, 8], [16]],
        "stackwise_kernel_size": [[3, 3], [5]],
        "stackwise_num_strides": [[2, 1], [1]],
        "stackwise_se_ratio": [[None, 0.25], [0.25]],
        "stackwise_activation": [["relu", "relu"], ["hard_swish"], ["hard_swish"]],
        "stackwise_padding": [[1, 1], [2]],
        "output_num_filters": 32,
        "input_num_filters": 8,
        "depthwise_filters": 8,
        "depthwise_stride": 2,
        "depthwise_residual": False,
        "squeeze_and_excite": 0.5,
        "last_layer_filter": 24,
    },
    "MobileNetV5Backbone": {
        "stackwise_block_types": [["er"], ["uir", "mqa"]],
        "stackwise_num_blocks": [1, 2],
        "stackwise_num_filters": [[8], [16, 16]],
        "stackwise_strides": [[2], [2, 1]],
        "stackwise_act_layers": [["relu"], ["relu", "relu"]],
        "stackwise_exp_ratios": [[4.0], [6.0, 1.0]],
        "stackwise_se_ratios": [[0.0], [0.0, 0.0]],
        "stackwise_dw_kernel_sizes": [[0], [5, 3]],
        "stackwise_dw_start_kernel_sizes": [[0], [3, 0]],
        "stackwise_dw_end_kernel_sizes": [[0], [0, 0]],
        "stackwise_exp_kernel_sizes": [[3], [0, 0]],
        "stackwise_pw_kernel_sizes": [[1], [0, 0]],
        "stackwise_num_heads": [[0], [0, 2]],
        "stackwise_key_dims": [[0], [0, 8]],
        "stackwise_value_dims": [[0], [0, 8]],
        "stackwise_kv_strides": [[0], [0, 1]],
        "stackwise_use_cpe": [[False], [False, False]],
        "num_features": 16,
        "use_msfa": False,
    },
    "PaliGemmaBackbone": {
        "vit_patch_size": 8,
        "vit_num_heads": 2,
        "vit_hidden_dim": 16,
        "vit_num_layers": 1,
        "vit_intermediate_dim": 24,
    },
    "Qwen3_5Backbone": {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "Qwen3_5MoeBackbone": {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "ResNetBackbone": {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 64],
        "stackwise_num_blocks": [1, 2],
        "stackwise_num_strides": [1, 2],
        "block_type": "basic_block",
    },
    "RWKV7Backbone": {
        "hidden_size": 16,
        "gate_lora": 4,
        "mv_lora": 4,
        "aaa_lora": 4,
        "decay_lora": 4,
    },
    "SmolLM3Backbone": {
        "rope_layer_enabled_list": [True, True],
        "layer_types": ["full_attention"] * 2,
        "partial_rotary_factor": 1.0,
    },
    "SwinTransformerBackbone": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 2,
    },
    "T5Backbone": {"key_value_dim": 8},
    "T5Gemma2Backbone": ENCODER_AND_DECODER,
    "T5GemmaBackbone": ENCODER_AND_DECODER,
    "VGGBackbone": {"stackwise_num_repeats": [1, 1], "stackwise_num_filters": [8, 8]},
    "ViTDetBackbone": {
        "hidden_size": 16,
        "global_attention_layer_indices": [1],
        "num_output_channels": 8,
        "window_size": 2,
    },
    "VideoPrismBackbone": {
        "num_frames": 2,
        "num_spatial_layers": 1,
        "num_temporal_layers": 1,
        "num_auxiliary_layers": 0,
        "vocabulary_size": 0,
    },
    "WhisperBackbone": {
        "num_mels": 8,
        "max_encoder_sequence_length": 16,
        "max_decoder_sequence_length": 16,
    },
    "XceptionBackbone": {
        "stackwise_conv_filters": [[8, 8], [8, 8]],
        "stackwise_pooling": [True, False],
    },
}


# The shapes, without batch, of inputs that not every size fits.
SHAPES = {
    "Gemma3nBackbone": {
        "images": (1, 32, 32, 3),
        "input_features": (1, 8, 16),
        "input_features_mask": (1, 8),
    },
    "Gemma4Backbone": {
        "pixel_values": (1, 16, 48),
        "pixel_position_ids": (1, 16, 2),
        "vision_indices": (4,),
    },
    "Gemma4VisionEncoder": {
        "pixel_values": (1, 16, 192),
        "pixel_position_ids": (1, 16, 2),
    },
    "MoonshineBackbone": {
        "encoder_input_values": (2048, 1),  # samples of sound
        "encoder_padding_mask": (2048,),
    },
    "PARSeqBackbone": {"token_ids": (7,), "padding_mask": (7,)},
    "SAM3PromptableConceptBackbone": {"boxes": (1, 5), "box_labels": (1,)},
}
NAMES = sorted(
    {
        *composed.MADE_OF,
        *("AlbertBackbone", "BLIP2VisionEncoder", "BartBackbone", "BertBackbone"),
        *("BloomBackbone", "CSPNetBackbone", "DINOV2Backbone", "DINOV3Backbone"),
        *("DebertaV3Backbone", "DeiTBackbone", "DenseNetBackbone"),
        *("DistilBertBackbone", "ESM2Backbone", "ESMBackbone", "EdRecBackbone"),
        *("EfficientNetBackbone", "ElectraBackbone", "FNetBackbone"),
        *("FalconBackbone", "FluxBackbone", "GPT2Backbone", "GPTNeoXBackbone"),
        *("Gemma3Backbone", "Gemma3VisionEncoder", "GemmaBackbone"),
        *("GptOssBackbone", "Llama3Backbone", "LlamaBackbone", "MiTBackbone"),
        *("MistralBackbone", "MixtralBackbone", "MoonshineBackbone", "OPTBackbone"),
        *("PaliGemmaBackbone", "Phi3Backbone", "Qwen2Backbone", "Qwen3Backbone"),
        *("Qwen3MoeBackbone", "Qwen3_5Backbone", "QwenBackbone", "QwenMoeBackbone"),
        *("RWKV7Backbone", "ResNetBackbone", "RobertaBackbone"),
        *("RoformerV2Backbone", "SmolLM3Backbone", "SwinTransformerBackbone"),
        *("T5Backbone", "T5GemmaBackbone", "VGGBackbone", "ViTBackbone"),
        *("ViTDetBackbone", "VideoPrismBackbone", "WhisperBackbone"),
        *("XLMRobertaBackbone", "XLNetBackbone", "XceptionBackbone"),
        *("Gemma4VisionEncoder", "HGNetV2Backbone", "MobileNetBackbone"),
        *("MobileNetV5Backbone", "Qwen3_5MoeBackbone", "T5Gemma2Backbone"),
    }
)


def build(name: str, policy: str = "float32", **arguments: Any) -> keras.Model:
    """Makes a backbone by name, with random weights, biases and scales too.

    Args:
      name: one of `NAMES`, or a part of one.
      policy: the global policy that it is made under.
      **arguments: in place of those of the table.
    """
    cls = getattr(keras_hub.models, name)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        if name in composed.MADE_OF:
            part = functools.partial(build, policy=policy)
            model = composed.MADE_OF[name](cls, part)
        else:
            dtype = {"dtype": policy} if policy == "float32" else {}
            own = {**dtype, **OWN.get(name, {}), **arguments}
            signature = inspect.signature(cls.__init__).parameters
            values = {key: SIZES[key] for key in signature if key in SIZES}
            model = cls(**(values | own))
    finally:
        keras.config.set_dtype_policy(before)
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        noise = generator.normal(0.0, 0.1, variable.shape)
        variable.assign_add(noise.astype(np.float32))
    return model


def inputs(model: keras.Model, batch: int = 2, length: int = 16) -> Any:
    """Random inputs: token ids below 6, masks of ones, normal numbers."""
    generator = np.random.default_rng(1)
    known = SHAPES.get(type(model).__name__, {})

    def one(tensor: keras.KerasTensor) -> np.ndarray:
        shape = [batch, *known.get(tensor.name, tensor.shape[1:])]
        missing = 32 if len(shape) == 4 and shape[-1] == 3 else length
        shape = [missing if size is None else size for size in shape]
        if "mask" in tensor.name and tensor.dtype != "float32":
            return np.ones(shape, tensor.dtype)
        if tensor.name in ("position_ids", "vision_indices"):
            return np.broadcast_to(np.arange(shape[-1]), shape)
        if tensor.name == "num_steps":
            return np.full(shape, 2)
        if tensor.name == "boxes":
            return generator.uniform(0.2, 0.4, shape).astype(np.float32)
        if tensor.dtype == "float32":
            return generator.normal(size=shape).astype(np.float32)
        few = "segment" in tensor.name or tensor.name == "box_labels"
        return generator.integers(0, 2 if few else 6, shape)

    return keras.tree.map_structure(one, model.input)
