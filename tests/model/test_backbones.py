"""`backbone_config`: the vision models of transformers and timm as encoders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from backbones import backbone_config, every_backbone, grid_of, needs_timm
from transformers import (
    ASTConfig,
    BertConfig,
    CLIPConfig,
    ConvNextConfig,
    Dinov2Config,
    PreTrainedConfig,
    ResNetConfig,
    Siglip2VisionConfig,
    TimmBackboneConfig,
)

from modeling_showattend import ShowAttendConfig
from modeling_showattend import ShowAttendForConditionalGeneration as Model

MakeConfig = Callable[..., ShowAttendConfig]
MakeModel = Callable[..., Any]
LABELS = torch.tensor([[5, 6, 9, 3], [7, 8, 3, -100]])


@pytest.fixture
def pixel_values() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 64, 64)


@every_backbone
def test_captions_and_comes_back(make_model: MakeModel, pixel_values: torch.Tensor, tmp_path: Path, kind: str) -> None:
    model = make_model(encoder_name=None, backbone_config=backbone_config(kind))
    rows, columns = model.encoder.grid_shape(64, 64)
    assert (rows, columns) == grid_of(kind)
    output = model(pixel_values=pixel_values, labels=LABELS)
    assert output.encoder_last_hidden_state.shape == (2, rows * columns, model.config.encoder_dim)
    assert model.decoder.lstm_cell.weight_ih.shape[1] == 8 + model.config.encoder_dim
    assert not torch.equal(output.logits[0, 0], output.logits[1, 0])
    features = model.encoder.frozen_features(pixel_values)
    assert torch.equal(model.generate(image_features=features), model.generate(pixel_values))

    model.save_pretrained(tmp_path)
    loaded, report = Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    # Not to the last bit: loaded weights lie at other addresses, by which some kernels round differently.
    logits = loaded(pixel_values=pixel_values, labels=LABELS).logits
    torch.testing.assert_close(logits, output.logits, rtol=1e-4, atol=1e-4)
    assert facts(loaded.config) == facts(model.config)
    half = Model.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    half.generate(pixel_values)


def facts(config: Any) -> dict[str, Any]:
    """A config without what loading alone sets."""
    backbone = config.backbone_config.to_dict() | {"dtype": None}
    return config.to_dict() | {"_name_or_path": "", "backbone_config": backbone}


@every_backbone
def test_frozen_without_dropout(make_model: MakeModel, pixel_values: torch.Tensor, kind: str) -> None:
    """Cached features must be those of every epoch."""
    dropping = {"drop_path_rate": 0.9} if kind in ("convnext", "swin", "dinov2_with_registers") else {}
    model = make_model(encoder_name=None, backbone_config=backbone_config(kind, **dropping)).train()
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    features = model.encoder(pixel_values=pixel_values)[0]
    assert torch.equal(model.encoder(pixel_values=pixel_values)[0], features)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(pixel_values=pixel_values, labels=LABELS).loss.backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())


@every_backbone
def test_last_stages_train(make_model: MakeModel, pixel_values: torch.Tensor, kind: str) -> None:
    model = make_model(encoder_name=None, backbone_config=backbone_config(kind), finetune_last_stages=1).train()
    names = [name for name, weights in model.encoder.named_parameters() if weights.requires_grad]
    last = {"resnet": "stages.3.", "convnext": "stages.3.", "timm_backbone": "blocks.4."}.get(kind, ".1.")
    assert names and all(last in name for name in names), names
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(pixel_values=pixel_values, labels=LABELS).loss.backward()
    optimizer.step()
    changed = {name for name, value in model.encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and changed <= set(names)
    with pytest.raises(ValueError, match="`finetune_last_stages` 1 needs `feature_cache` none"):
        model.encoder.frozen_features(pixel_values)


@needs_timm
@pytest.mark.parametrize(
    ("name", "stage"), [("test_resnet", "layer4"), ("test_convnext", "stages_3"), ("test_vit", "model.blocks.5")]
)
def test_last_stage_of_timm(name: str, stage: str) -> None:
    config = TimmBackboneConfig(backbone=name)
    backbone = Model(ShowAttendConfig(backbone_config=config, finetune_last_stages=1)).train().encoder.backbone
    trained = {weights for weights, parameter in backbone.named_parameters() if parameter.requires_grad}
    in_stage = {weights for weights, _ in backbone.named_parameters() if weights.startswith(f"_backbone.{stage}.")}
    assert trained == in_stage != set()


@needs_timm
def test_size_that_timm_refuses(make_model: MakeModel) -> None:
    model = make_model(encoder_name=None, backbone_config=TimmBackboneConfig(backbone="test_vit"))
    with pytest.raises(ValueError, match=r"does not take images of 63x63 pixels: .*divisible by patch size"):
        model.encoder.grid_shape(63, 63)


@needs_timm
def test_stages_that_are_unknown(make_config: MakeConfig) -> None:
    config = TimmBackboneConfig(backbone="regnety_002")
    with pytest.raises(ValueError, match="The stages of a timm_backbone are unknown: finetune_last_stages must be 0"):
        Model(make_config(encoder_name=None, backbone_config=config, finetune_last_stages=1))


def test_resnet_of_transformers_is_torchvisions(make_model: MakeModel, pixel_values: torch.Tensor) -> None:
    torchvisions = make_model(encoder_name="resnet50")
    transformers = make_model(encoder_name=None, backbone_config=ResNetConfig())
    transformers.encoder.backbone.load_state_dict(converted(torchvisions.encoder.resnet))
    transformers.decoder.load_state_dict(torchvisions.decoder.state_dict())
    features = torchvisions.encoder(pixel_values=pixel_values)[0]
    torch.testing.assert_close(transformers.encoder(pixel_values=pixel_values)[0], features)
    assert torch.equal(transformers.generate(pixel_values), torchvisions.generate(pixel_values))


def converted(resnet: Any) -> dict[str, torch.Tensor]:
    """The weights of a torchvision ResNet-50 under the names of transformers' ResNetBackbone."""
    modules: dict[str, torch.nn.Module] = {
        "embedder.embedder.convolution": resnet[0],
        "embedder.embedder.normalization": resnet[1],
    }
    for stage, blocks in enumerate(resnet[4:]):
        for number, block in enumerate(blocks):
            name = f"encoder.stages.{stage}.layers.{number}"
            for place in range(3):
                modules[f"{name}.layer.{place}.convolution"] = getattr(block, f"conv{place + 1}")
                modules[f"{name}.layer.{place}.normalization"] = getattr(block, f"bn{place + 1}")
            if block.downsample is not None:
                modules[f"{name}.shortcut.convolution"] = block.downsample[0]
                modules[f"{name}.shortcut.normalization"] = block.downsample[1]
    assert isinstance(resnet[4][0], torchvision.models.resnet.Bottleneck)
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def test_class_token_and_registers_are_dropped(make_model: MakeModel, pixel_values: torch.Tensor) -> None:
    """Each position holds its own patch: with one layer and no attention, another patch does not change it."""
    for kind in ("dinov2_with_registers", "clip_vision_model"):
        model = make_model(encoder_name=None, backbone_config=backbone_config(kind, num_hidden_layers=1))
        for name, weights in model.encoder.backbone.named_parameters():
            if "v_proj" in name or "value" in name:
                torch.nn.init.zeros_(weights)
        other = pixel_values.clone()
        other[:, :, 16:32, 48:64] += 1  # the patch in the second row and the last column
        before, after = (model.encoder(pixel_values=images)[0] for images in (pixel_values, other))
        assert (before != after).any(dim=(0, 2)).nonzero().flatten().tolist() == [7]


def test_grid_need_not_be_square(make_model: MakeModel) -> None:
    model = make_model(encoder_name=None, backbone_config=backbone_config("dinov2_with_registers"))
    assert model.encoder.grid_shape(32, 64) == (2, 4)
    assert model.encoder(pixel_values=torch.randn(2, 3, 32, 64))[0].shape == (2, 8, 16)


def test_last_of_several_out_features(make_model: MakeModel, pixel_values: torch.Tensor) -> None:
    config = backbone_config("resnet", hidden_sizes=[8, 8, 16, 24], out_features=["stage2", "stage3"])
    model = make_model(encoder_name=None, backbone_config=config)
    assert model.config.encoder_dim == 16
    assert model.encoder(pixel_values=pixel_values)[0].shape == (2, 16, 16)


def test_config_from_a_dict(make_config: MakeConfig) -> None:
    config = make_config(encoder_name=None, backbone_config={"model_type": "convnext", "depths": [1, 1, 1, 1]})
    assert isinstance(config.backbone_config, ConvNextConfig)
    assert config.backbone_config.depths == [1, 1, 1, 1]
    assert config.encoder_name is None
    assert ShowAttendConfig().encoder_name == "resnet50"


def test_weights_in_half_precision_before(make_model: MakeModel) -> None:
    """The dtype in the config of a pretrained backbone is that of its file, not the captioner's."""
    model = make_model(encoder_name=None, backbone_config=backbone_config("convnext", dtype="float16"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_name": "resnet50", "backbone_config": ResNetConfig()}, "encoder_name='resnet50' and backbone_conf"),
        ({"stride_in_1x1": True, "backbone_config": ResNetConfig()}, "stride_in_1x1=True is for the ResNets of enc"),
        ({"finetune_last_stages": -1, "backbone_config": ResNetConfig()}, "finetune_last_stages=-1 must not be neg"),
        ({"backbone_config": {"model_type": "resnet5"}}, "has the model_type 'resnet5', which this version"),
        ({"backbone_config": {"depths": [1]}}, "has the model_type None"),
    ],
)
def test_config_errors(make_config: MakeConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**{"encoder_name": None} | changes)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (BertConfig(), {}, "of 'bert', which has no feature maps: take a backbone that"),
        (CLIPConfig(), {}, "of 'clip', which has no feature maps"),
        (ASTConfig(num_hidden_layers=1), {}, "of 'audio-spectrogram-transformer', which reads input_v"),
        (backbone_config("resnet"), {"encoder_dim": 17}, "encoder_dim=17 does not fit .* features have 16 channels"),
        (backbone_config("vit"), {"finetune_last_stages": 3}, "finetune_last_stages=3 is more than .* 2 stages"),
    ],
)
def test_what_cannot_be_an_encoder(
    make_config: MakeConfig, config: PreTrainedConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Model(make_config(encoder_name=None, backbone_config=config, **changes))


@needs_timm
def test_maps_with_channels_last_are_refused(make_config: MakeConfig) -> None:
    """timm's Swin gives (batch, rows, columns, channels)."""
    model = Model(
        make_config(encoder_name=None, backbone_config=TimmBackboneConfig(backbone="swin_tiny_patch4_window7_224"))
    )
    with pytest.raises(ValueError, match=r"timm_backbone encoder must give maps \(batch, 768, rows, columns\), not"):
        model.encoder(pixel_values=torch.zeros(1, 3, 224, 224))


def test_images_in_patches(make_config: MakeConfig) -> None:
    """SigLIP 2 reads sequences of patches, with their mask and shape."""
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Model(make_config(encoder_name=None, backbone_config=Siglip2VisionConfig(**sizes)))
    with pytest.raises(ValueError, match=r"does not take images of 64x64 pixels: .*pixel_attention_mask"):
        model.encoder.grid_shape(64, 64)


@pytest.mark.parametrize("kind", ["clip_vision_model", "vit", "convnext"])
def test_images_of_another_size(make_model: MakeModel, kind: str) -> None:
    model = make_model(encoder_name=None, backbone_config=backbone_config(kind))
    size = 8 if kind == "convnext" else 128
    with pytest.raises(ValueError, match=f"The encoder does not take images of {size}x{size} pixels: "):
        model.encoder.grid_shape(size, size)


def test_dinov2_without_reshaped_states(make_config: MakeConfig) -> None:
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, reshape_hidden_states=False)
    model = Model(make_config(encoder_name=None, backbone_config=config))
    with pytest.raises(ValueError, match=r"The dinov2 encoder must give maps \(batch, 16, rows, columns\), not \(1, "):
        model.encoder.grid_shape(56, 56)
