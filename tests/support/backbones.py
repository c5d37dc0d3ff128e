"""Small random models: every backbone of keras_hub that takes a dozen numbers.

model = backbones.build("BartBackbone")
inputs = backbones.inputs(model)
"""

import inspect

import keras
import keras_hub
import numpy as np

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
    "T5GemmaBackbone": {
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
    },
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


def _two_towers(name):
    def make(cls):
        return cls(
            vision_encoder=build(f"{name}VisionEncoder"),
            text_encoder=build(f"{name}TextEncoder"),
            projection_dim=16,
        )

    return make


def _segformer(cls):
    return cls(image_encoder=build("MiTBackbone"), projection_filters=8)


def _sam(cls):
    layers = keras_hub.layers
    return cls(
        image_encoder=build("ViTDetBackbone"),
        prompt_encoder=layers.SAMPromptEncoder(
            hidden_size=8,
            image_embedding_size=(2, 2),
            input_image_size=(32, 32),
            mask_in_channels=4,
        ),
        mask_decoder=layers.SAMMaskDecoder(
            num_layers=1,
            hidden_size=8,
            intermediate_dim=16,
            num_heads=2,
            embedding_dim=8,
            num_multimask_outputs=3,
            iou_head_depth=2,
            iou_head_hidden_dim=8,
        ),
    )


def _retinanet(cls):
    return cls(
        image_encoder=build("ResNetBackbone"), min_level=3, max_level=4, use_p5=False
    )


def _deeplab(cls):
    return cls(
        image_encoder=build("ResNetBackbone"),
        spatial_pyramid_pooling_key="P3",
        upsampling_size=8,
        dilation_rates=[2],
        projection_filters=8,
        image_shape=(32, 32, 3),
    )


def _siglip(cls):
    return cls(
        vision_encoder=build("SigLIPVisionEncoder"),
        text_encoder=build("SigLIPTextEncoder"),
    )


def _parseq(cls):
    return cls(
        image_encoder=build("ViTBackbone", use_class_token=False),
        vocabulary_size=20,
        max_label_length=6,
        decoder_hidden_dim=16,
        num_decoder_layers=1,
        num_decoder_heads=2,
        decoder_mlp_dim=24,
    )


# Those that are made of others.
MADE_OF = {
    "CLIPBackbone": _two_towers("CLIP"),
    "MetaCLIP2Backbone": _two_towers("MetaCLIP2"),
    "DeepLabV3Backbone": _deeplab,
    "PARSeqBackbone": _parseq,
    "RetinaNetBackbone": _retinanet,
    "SAMBackbone": _sam,
    "SegFormerBackbone": _segformer,
    "SigLIPBackbone": _siglip,
}
NAMES = sorted(
    {
        *MADE_OF,
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
    }
)


def build(name, **arguments):
    """Makes a backbone by name, with random weights, biases and scales too."""
    cls = getattr(keras_hub.models, name)
    if name in MADE_OF:
        model = MADE_OF[name](cls)
    else:
        own = {**OWN.get(name, {}), **arguments}
        signature = inspect.signature(cls.__init__).parameters
        values = {key: SIZES[key] for key in signature if key in SIZES}
        model = cls(**(values | own), dtype="float32")
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        noise = generator.normal(0.0, 0.1, variable.shape)
        variable.assign_add(noise.astype(np.float32))
    return model


def inputs(model, batch=2, length=16):
    """Random inputs: token ids below 8, masks of ones, normal numbers."""
    generator = np.random.default_rng(1)

    def one(tensor):
        shape = [batch, *tensor.shape[1:]]
        missing = 32 if len(shape) == 4 and shape[-1] == 3 else length
        if "Moonshine" in type(model).__name__ and "encoder" in tensor.name:
            missing = 2048  # samples of sound
        shape = [missing if size is None else size for size in shape]
        if "mask" in tensor.name and tensor.dtype != "float32":
            return np.ones(shape, tensor.dtype)
        if tensor.dtype == "float32":
            return generator.normal(size=shape).astype(np.float32)
        return generator.integers(0, 2 if "segment" in tensor.name else 6, shape)

    return keras.tree.map_structure(one, model.input)
