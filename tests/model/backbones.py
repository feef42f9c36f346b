"""Configs of tiny vision models of every kind that can be an encoder."""

from importlib.util import find_spec
from typing import Any

import pytest
from transformers import (
    CLIPVisionConfig,
    ConvNextConfig,
    Dinov2WithRegistersConfig,
    PreTrainedConfig,
    ResNetConfig,
    SiglipVisionConfig,
    SwinConfig,
    TimmBackboneConfig,
    ViTConfig,
)

_VIT: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
_VIT |= {"image_size": 64, "patch_size": 16}
_HIERARCHY: dict[str, Any] = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}

# Of a config of each kind: its class, its arguments, and the grid of an image of 64x64 pixels.
KINDS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any], tuple[int, int]]] = {
    "resnet": (ResNetConfig, {"embedding_size": 8, "layer_type": "basic", **_HIERARCHY}, (2, 2)),
    "convnext": (ConvNextConfig, _HIERARCHY, (2, 2)),
    "swin": (SwinConfig, {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}, (8, 8)),
    "dinov2_with_registers": (Dinov2WithRegistersConfig, {"num_register_tokens": 3, **_VIT}, (4, 4)),
    "clip_vision_model": (CLIPVisionConfig, _VIT, (4, 4)),
    "siglip_vision_model": (SiglipVisionConfig, _VIT, (4, 4)),
    "vit": (ViTConfig, _VIT, (4, 4)),
    "timm_backbone": (TimmBackboneConfig, {"backbone": "test_efficientnet"}, (2, 2)),
}
needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
every_backbone = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=needs_timm) if kind.startswith("timm") else kind for kind in KINDS]
)


def backbone_config(kind: str, **changes: Any) -> PreTrainedConfig:
    config_class, arguments, _ = KINDS[kind]
    return config_class(**arguments | changes)


def grid_of(kind: str) -> tuple[int, int]:
    return KINDS[kind][2]
