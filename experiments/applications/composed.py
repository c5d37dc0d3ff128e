"""The backbones of keras_hub that are made of others, in small.

model = MADE_OF["CLIPBackbone"](keras_hub.models.CLIPBackbone, build)

`build` makes a backbone by its name; see `backbones.build`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import keras_hub
from keras_hub.src.models.gemma3n import gemma3n_audio_encoder
from keras_hub.src.models.vae import vae_backbone

Build = Callable[..., keras.Model]


def _two_towers(name: str) -> Callable[[Any, Build], keras.Model]:
    def make(cls: Any, build: Build) -> keras.Model:
        return cls(
            vision_encoder=build(f"{name}VisionEncoder"),
            text_encoder=build(f"{name}TextEncoder"),
            projection_dim=16,
        )

    return make


def _segformer(cls: Any, build: Build) -> keras.Model:
    return cls(image_encoder=build("MiTBackbone"), projection_filters=8)


def _sam(cls: Any, build: Build) -> keras.Model:
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


def _sam3(cls: Any, build: Build) -> keras.Model:
    layers, image = keras_hub.layers, (28, 28, 3)
    sizes = {"num_layers": 1, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 32}
    return cls(
        vision_encoder=layers.SAM3VisionEncoder(
            image_shape=image,
            patch_size=14,
            fpn_hidden_dim=16,
            fpn_scale_factors=[4.0, 2.0, 1.0, 0.5],
            pretrain_image_shape=(42, 42, 3),
            window_size=2,
            global_attn_indexes=[1],
            **(sizes | {"num_layers": 2}),
        ),
        text_encoder=layers.SAM3TextEncoder(
            vocabulary_size=32, embedding_dim=16, **sizes
        ),
        geometry_encoder=layers.SAM3GeometryEncoder(roi_size=7, **sizes),
        detr_encoder=layers.SAM3DetrEncoder(**sizes),
        detr_decoder=layers.SAM3DetrDecoder(
            image_shape=image, patch_size=14, num_queries=4, **sizes
        ),
        mask_decoder=layers.SAM3MaskDecoder(
            num_upsampling_stages=3, hidden_dim=16, num_heads=2
        ),
    )


def _retinanet(cls: Any, build: Build) -> keras.Model:
    return cls(
        image_encoder=build("ResNetBackbone"), min_level=3, max_level=4, use_p5=False
    )


def _deeplab(cls: Any, build: Build) -> keras.Model:
    return cls(
        image_encoder=build("ResNetBackbone"),
        spatial_pyramid_pooling_key="P3",
        upsampling_size=8,
        dilation_rates=[2],
        projection_filters=8,
        image_shape=(32, 32, 3),
    )


def _siglip(cls: Any, build: Build) -> keras.Model:
    return cls(
        vision_encoder=build("SigLIPVisionEncoder"),
        text_encoder=build("SigLIPTextEncoder"),
    )


def _parseq(cls: Any, build: Build) -> keras.Model:
    return cls(
        image_encoder=build("ViTBackbone", use_class_token=False),
        vocabulary_size=20,
        max_label_length=6,
        decoder_hidden_dim=16,
        num_decoder_layers=1,
        num_decoder_heads=2,
        decoder_mlp_dim=24,
    )


def _basnet(cls: Any, build: Build) -> keras.Model:
    encoder = build(
        "ResNetBackbone",
        stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        image_shape=(None, None, 3),
    )
    return cls(
        image_encoder=encoder,
        num_classes=1,
        image_shape=(32, 32, 3),
    )


def _blip2(cls: Any, build: Build) -> keras.Model:
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 24}
    return cls(
        vision_encoder=build("BLIP2VisionEncoder"),
        qformer=keras_hub.models.BLIP2QFormer(
            num_query_tokens=2,
            vision_dim=16,
            cross_attention_frequency=1,
            dropout=0.0,
            layer_norm_epsilon=1e-6,
            **sizes,
        ),
        language_model=keras_hub.models.BLIP2CustomOPT(
            vocabulary_size=50,
            num_query_tokens=2,
            qformer_hidden_dim=16,
            max_sequence_length=24,
            dropout=0.0,
            language_projection=None,
            **sizes,
        ),
    )


def _dfine(cls: Any, build: Build) -> keras.Model:
    return cls(
        backbone=build(
            "HGNetV2Backbone",
            image_shape=(None, None, 3),
            out_features=["stage1", "stage2"],
        ),
        decoder_in_channels=[16, 16],
        encoder_hidden_dim=16,
        num_denoising=0,
        num_labels=4,
        hidden_dim=16,
        learn_initial_query=False,
        num_queries=10,
        anchor_image_size=(32, 32),
        feat_strides=[4, 8],
        num_feature_levels=2,
        encoder_in_channels=[16, 32],
        encode_proj_layers=[1],
        num_attention_heads=2,
        encoder_ffn_dim=32,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.5,
        eval_idx=-1,
        num_decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=16,
        num_lqe_layers=2,
        out_features=["stage1", "stage2"],
        image_shape=(None, None, 3),
        seed=0,
    )


def _depth_anything(cls: Any, build: Build) -> keras.Model:
    return cls(
        image_encoder=build(
            "DINOV2Backbone",
            num_layers=4,
            image_shape=(64, 64, 3),
            position_embedding_shape=(64, 64, 3),
            apply_layernorm=True,
        ),
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_dims=[8, 8, 16, 16],
        fusion_hidden_dim=16,
        head_hidden_dim=8,
        head_in_index=-1,
        feature_keys=["stage1", "stage2", "stage3", "stage4"],
    )


def _gemma3n(cls: Any, build: Build) -> keras.Model:
    audio = gemma3n_audio_encoder.Gemma3nAudioEncoder(
        hidden_size=16,
        input_feat_size=16,
        sscp_conv_channel_size=[4, 8],
        sscp_conv_kernel_size=[(1, 1), (1, 1)],
        sscp_conv_stride_size=[(2, 2), (2, 2)],
        sscp_conv_group_norm_eps=1e-5,
        num_hidden_layers=1,
        rms_norm_eps=1e-6,
        gradient_clipping=1.0,
        residual_weight=0.5,
        num_attention_heads=2,
        attention_chunk_size=2,
        num_attention_context_right=1,
        num_attention_context_left=1,
        attention_logit_cap=50.0,
        conv_kernel_size=3,
        reduction_factor=1,
    )
    return cls(
        text_vocab_size=50,
        text_hidden_size=16,
        num_hidden_layers=1,
        pad_token_id=0,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=[24],
        hidden_activation="gelu_approximate",
        layer_types=["full_attention"],
        sliding_window=4,
        rope_theta=1e4,
        max_position_embeddings=16,
        vocab_size_per_layer_input=50,
        hidden_size_per_layer_input=4,
        altup_num_inputs=2,
        laurel_rank=2,
        vision_encoder_config=build(
            "MobileNetV5Backbone", image_shape=(32, 32, 3)
        ).get_config(),
        vision_hidden_size=16,
        audio_encoder_config=audio.get_config(),
        audio_hidden_size=16,
    )


def _gemma4(cls: Any, build: Build) -> keras.Model:
    return cls(
        vocabulary_size=50,
        image_size=16,
        num_layers=2,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=16,
        intermediate_dim=24,
        head_dim=8,
        sliding_window_size=8,
        sliding_window_pattern=2,
        vision_encoder=build(
            "Gemma4VisionEncoder", image_size=16, patch_size=4, num_layers=1
        ),
    )


def _stable_diffusion3(cls: Any, build: Build) -> keras.Model:
    def text(width: int, activation: str, name: str) -> keras.Model:
        return keras_hub.models.CLIPTextEncoder(
            vocabulary_size=20,
            embedding_dim=width,
            hidden_dim=width,
            num_layers=2,
            num_heads=2,
            intermediate_dim=2 * width,
            intermediate_activation=activation,
            intermediate_output_index=-2,
            name=name,
        )

    vae = vae_backbone.VAEBackbone(
        [32, 32, 32, 32], [1, 1, 1, 1], [32, 32, 32, 32], [1, 1, 1, 1],
        sampler_method="mode", name="vae",
    )  # fmt: skip
    return cls(
        mmdit_patch_size=2,
        mmdit_hidden_dim=32,
        mmdit_num_layers=2,
        mmdit_num_heads=2,
        mmdit_position_size=192,
        mmdit_qk_norm=None,
        mmdit_dual_attention_indices=None,
        vae=vae,
        clip_l=text(32, "quick_gelu", "clip_l"),
        clip_g=text(64, "gelu", "clip_g"),
        image_shape=(64, 64, 3),
    )


MADE_OF: dict[str, Callable[[Any, Build], keras.Model]] = {
    "BASNetBackbone": _basnet,
    "BLIP2Backbone": _blip2,
    "CLIPBackbone": _two_towers("CLIP"),
    "DFineBackbone": _dfine,
    "DeepLabV3Backbone": _deeplab,
    "DepthAnythingBackbone": _depth_anything,
    "Gemma3nBackbone": _gemma3n,
    "Gemma4Backbone": _gemma4,
    "MetaCLIP2Backbone": _two_towers("MetaCLIP2"),
    "PARSeqBackbone": _parseq,
    "RetinaNetBackbone": _retinanet,
    "SAM3PromptableConceptBackbone": _sam3,
    "SAMBackbone": _sam,
    "SegFormerBackbone": _segformer,
    "SigLIPBackbone": _siglip,
    "StableDiffusion3Backbone": _stable_diffusion3,
}
