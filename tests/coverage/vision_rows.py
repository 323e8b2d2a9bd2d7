"""Vision models of the transformers library, small and with random weights."""

from __future__ import annotations

from tests.coverage.rows import Row, hf, pixels, settings

_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 6,
}
_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "num_labels": 6}

NAMED = (
    Row("resnet-basic", hf("ResNetForImageClassification", layer_type="basic", **_RESNET), pixels()),
    Row(
        "resnet-bottleneck",
        hf(
            "ResNetForImageClassification",
            layer_type="bottleneck",
            **settings(_RESNET, hidden_sizes=[32, 64]),
        ),
        pixels(),
    ),
    Row("regnet-x", hf("RegNetForImageClassification", layer_type="x", groups_width=8, **_RESNET), pixels()),
    Row("regnet-y", hf("RegNetForImageClassification", layer_type="y", groups_width=8, **_RESNET), pixels()),
    Row(
        "mobilenet-v1",
        hf("MobileNetV1ForImageClassification", depth_multiplier=0.25, image_size=32),
        pixels(),
    ),
    Row(
        "mobilenet-v2",
        hf("MobileNetV2ForImageClassification", depth_multiplier=0.25, image_size=32),
        pixels(),
    ),
    Row(
        "convnext",
        hf(
            "ConvNextForImageClassification", hidden_sizes=[16, 32], depths=[1, 2], num_stages=2, patch_size=4
        ),
        pixels(),
    ),
    Row("vit", hf("ViTForImageClassification", **_VIT), pixels()),
    Row("deit", hf("DeiTForImageClassificationWithTeacher", **_VIT), pixels()),
    Row(
        "swin",
        hf(
            "SwinForImageClassification",
            image_size=32,
            patch_size=4,
            embed_dim=16,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=4,
        ),
        pixels(),
    ),
    Row(
        "mobilevit",
        hf(
            "MobileViTForImageClassification",
            image_size=64,
            hidden_sizes=[24, 32, 40],
            neck_hidden_sizes=[16, 16, 24, 32, 32, 40, 64],
            num_attention_heads=2,
        ),
        pixels(64),
    ),
)

MORE = (
    Row(
        "swinv2",
        hf(
            "Swinv2ForImageClassification",
            image_size=32,
            patch_size=4,
            embed_dim=16,
            depths=[1, 2],
            num_heads=[2, 4],
            window_size=4,
        ),
        pixels(),
    ),
    Row(
        "segformer",
        hf(
            "SegformerForSemanticSegmentation",
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[16, 32],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[2, 4],
            mlp_ratios=[2, 2],
            decoder_hidden_size=32,
        ),
        pixels(),
    ),
    Row(
        "convnextv2",
        hf(
            "ConvNextV2ForImageClassification",
            hidden_sizes=[16, 32],
            depths=[1, 1],
            num_stages=2,
            patch_size=4,
        ),
        pixels(),
    ),
    Row("beit", hf("BeitForImageClassification", **_VIT), pixels()),
    Row("data2vec-vision", hf("Data2VecVisionForImageClassification", **_VIT), pixels()),
    Row("dinov2", hf("Dinov2ForImageClassification", **_VIT), pixels()),
    Row("vit-msn", hf("ViTMSNForImageClassification", **_VIT), pixels()),
    Row(
        "yolos",
        hf("YolosForObjectDetection", num_detection_tokens=5, **settings(_VIT, image_size=[32, 32])),
        pixels(),
    ),
    Row(
        "dpt",
        hf(
            "DPTForDepthEstimation",
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=16,
            **settings(_VIT, num_hidden_layers=4),
        ),
        pixels(),
    ),
    Row(
        "clip-vision",
        hf("CLIPVisionModelWithProjection", projection_dim=24, **_VIT),
        pixels(),
    ),
    Row("siglip-vision", hf("SiglipVisionModel", **_VIT), pixels()),
    Row(
        "efficientnet",
        hf(
            "EfficientNetForImageClassification",
            image_size=32,
            width_coefficient=0.25,
            depth_coefficient=0.3,
            hidden_dim=320,
        ),
        pixels(),
    ),
    Row(
        "poolformer",
        hf(
            "PoolFormerForImageClassification",
            hidden_sizes=[16, 32],
            depths=[1, 1],
            num_encoder_blocks=2,
            patch_sizes=[7, 3],
            strides=[4, 2],
            padding=[2, 1],
        ),
        pixels(),
    ),
    Row(
        "cvt",
        hf("CvtForImageClassification", embed_dim=[16, 32, 64], num_heads=[1, 2, 4], depth=[1, 2, 3]),
        pixels(64),
    ),
    Row(
        "levit",
        hf(
            "LevitForImageClassification",
            image_size=64,
            hidden_sizes=[32, 48, 64],
            num_attention_heads=[2, 3, 4],
            depths=[1, 1, 1],
            key_dim=[8, 8, 8],
        ),
        pixels(64),
    ),
    Row(
        "mobilevit-v2",
        hf(
            "MobileViTV2ForImageClassification", image_size=64, width_multiplier=0.25, n_attn_blocks=[1, 1, 1]
        ),
        pixels(64),
    ),
    Row(
        "pvt",
        hf(
            "PvtForImageClassification",
            image_size=64,
            hidden_sizes=[16, 32, 48, 64],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 2, 3, 4],
            mlp_ratios=[2, 2, 2, 2],
        ),
        pixels(64),
    ),
    Row(
        "focalnet",
        hf(
            "FocalNetForImageClassification",
            image_size=32,
            embed_dim=16,
            hidden_sizes=[16, 32],
            depths=[1, 1],
            focal_levels=[2, 2],
            focal_windows=[3, 3],
        ),
        pixels(),
    ),
    Row(
        "bit",
        hf(
            "BitForImageClassification",
            embedding_size=16,
            hidden_sizes=[32, 64],
            depths=[1, 1],
            num_groups=4,
            layer_type="preactivation",
        ),
        pixels(),
        nothing=("*",),
    ),
    Row(
        "swiftformer",
        hf(
            "SwiftFormerForImageClassification",
            image_size=64,
            depths=[1, 1, 1, 1],
            embed_dims=[16, 24, 32, 48],
        ),
        pixels(64),
    ),
    Row(
        "hiera",
        hf(
            "HieraForImageClassification",
            embed_dim=16,
            image_size=[64, 64],
            depths=[1, 1, 1, 1],
            num_heads=[1, 2, 4, 8],
        ),
        pixels(64),
    ),
    Row(
        "detr",
        hf(
            "DetrForObjectDetection",
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config={
                "model_type": "resnet",
                "embedding_size": 16,
                "hidden_sizes": [16, 32],
                "depths": [1, 1],
                "layer_type": "basic",
                "out_features": ["stage2"],
            },
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            num_queries=6,
        ),
        pixels(64),
    ),
    Row(
        "swin2sr",
        hf(
            "Swin2SRForImageSuperResolution",
            image_size=16,
            embed_dim=16,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=4,
            upscale=2,
        ),
        pixels(16),
    ),
)
