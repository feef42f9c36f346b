"""`--encoder`: training with pretrained vision models of transformers and timm."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import backbone_config, every_backbone, grid_of, needs_timm
from PIL import Image
from safetensors.torch import load_file
from tiny_flickr import forget_process, read_log, training_settings
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ViTForImageClassification,
    ViTImageProcessor,
)

from modeling_showattend.modeling_showattend import make_backbone
from showattend.attention.maps import attend
from showattend.checkpoints import load_captioner
from showattend.training import trainer
from showattend.training.backbones import load_backbone

pytestmark = pytest.mark.usefixtures("no_java")

SMALL: dict[str, Any] = {"encoder_name": "resnet50", "encoder_weights": "IMAGENET1K_V1", "batch_size": 20}
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


def train(folder: Path, output: Path, **changes: Any) -> Path:
    forget_process()
    return trainer.train(training_settings(folder, output, **SMALL | changes))


def save_backbone(kind: str, folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """A folder as on the Hub; its weights."""
    torch.manual_seed(0)
    backbone = make_backbone(backbone_config(kind, **changes))
    backbone.save_pretrained(folder)
    ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return backbone.state_dict()


@every_backbone
def test_trains_frozen(folder: Path, tmp_path: Path, kind: str) -> None:
    weights = save_backbone(kind, tmp_path / "eyes")
    model, processor = load_captioner(train(folder, tmp_path / "run", encoder=str(tmp_path / "eyes")))
    assert (model.config.encoder_name, model.config.backbone_config.model_type) == (None, kind)
    for name, value in model.encoder.backbone.state_dict().items():
        assert torch.equal(value, weights[name]), name
    images = processor.image_processor
    assert (images.size["height"], images.size["width"]) == (64, 64)
    assert (list(images.image_mean), list(images.image_std)) == (MEAN, STD)

    attended = attend(model, processor, Image.new("RGB", (90, 60), "red"))
    assert attended.grids.shape[1:] == grid_of(kind)
    assert attended.maps.shape[1:] == (60, 90)


def test_finetunes_the_last_layers(folder: Path, tmp_path: Path) -> None:
    weights = save_backbone("dinov2_with_registers", tmp_path / "eyes")
    settings: dict[str, Any] = {"encoder": str(tmp_path / "eyes"), "finetune_last_stages": 1}
    with pytest.raises(ValueError, match="`finetune_last_stages` 1 needs `feature_cache` none: this encoder cannot"):
        train(folder, tmp_path / "cached", **settings)
    settings |= {"feature_cache": "none", "mixed_precision": "bf16"}
    model, _ = load_captioner(train(folder, tmp_path / "run", **settings))
    for name, value in model.encoder.backbone.state_dict().items():
        assert torch.equal(value, weights[name]) != name.startswith("encoder.layer.1."), name


@every_backbone
def test_crops_of_the_images(folder: Path, tmp_path: Path, kind: str) -> None:
    save_backbone(kind, tmp_path / "eyes")
    settings: dict[str, Any] = {"encoder": str(tmp_path / "eyes"), "feature_cache": "none", "min_crop": 0.75}
    if kind in ("vit", "clip_vision_model", "siglip_vision_model"):
        with pytest.raises(ValueError, match=r"^`min_crop` must be 1 with this encoder, .* images of 63x63 pixels"):
            train(folder, tmp_path / "run", **settings)
    else:
        assert train(folder, tmp_path / "run", **settings)


def test_resumes(folder: Path, tmp_path: Path) -> None:
    save_backbone("convnext", tmp_path / "eyes")
    eyes = str(tmp_path / "eyes")
    train(folder, tmp_path / "whole", encoder=eyes, epochs=2)
    train(folder, tmp_path / "halves", encoder=eyes, epochs=1)
    train(folder, tmp_path / "halves", encoder=eyes, epochs=2)
    assert read_log(tmp_path / "halves") == read_log(tmp_path / "whole")
    whole, halves = (load_file(tmp_path / run / "best" / "model.safetensors") for run in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)

    # A second phase starts from the captioner, and finds the features in the cache.
    caches = set((folder / "cache").iterdir())
    train(folder, tmp_path / "second", init_from=str(tmp_path / "whole" / "best"))
    assert set((folder / "cache").iterdir()) == caches


def test_features_depend_on_the_config(folder: Path, tmp_path: Path) -> None:
    """Two feature maps of one network have the same layers and weights."""
    folders = []
    for stage in ("stage3", "stage4"):
        save_backbone("resnet", tmp_path / stage, out_features=[stage])
        settings = {"encoder": str(tmp_path / stage), "cache_dir": str(tmp_path / "cache")}
        train(folder, tmp_path / f"run-{stage}", **settings)
        folders.append(len(list((tmp_path / "cache").iterdir())))
    assert folders == [1, 2]


def test_classifier_of_the_hub(tmp_path: Path) -> None:
    """The weights of a network with a head, which lacks the pooler that transformers adds to a plain one."""
    config: Any = backbone_config("vit")
    classifier = ViTForImageClassification(config)
    classifier.half().save_pretrained(tmp_path)
    settings: dict[str, Any] = {"size": {"shortest_edge": 80}, "crop_size": 64, "do_center_crop": True, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor"} | settings)
    )
    backbone, image_processor = load_backbone(str(tmp_path))
    expected = classifier.vit.state_dict()
    assert {name: value.tolist() for name, value in backbone.state_dict().items()} == {
        name: value.tolist() for name, value in expected.items()
    }
    assert {weights.dtype for weights in backbone.parameters()} == {torch.float32}
    assert (dict(image_processor.size), image_processor.resample) == ({"height": 64, "width": 64}, 3)
    assert not image_processor.do_center_crop


def test_vision_model_of_clip(tmp_path: Path) -> None:
    vision = backbone_config("clip_vision_model").to_dict()
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 9,
    }
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)).eval()
    clip.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    backbone, _ = load_backbone(str(tmp_path))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = clip.vision_model(images).last_hidden_state
        assert torch.equal(backbone.eval()(images).last_hidden_state, expected)


@needs_timm
def test_folder_of_timm(tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    network: Any = timm.create_model("test_efficientnet").eval()
    save_for_hf(network, str(tmp_path), safe_serialization=True)
    backbone, image_processor = load_backbone(str(tmp_path))
    size = {"height": network.default_cfg["input_size"][1], "width": network.default_cfg["input_size"][2]}
    assert dict(image_processor.size) == size
    assert tuple(image_processor.image_mean) == network.default_cfg["mean"]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        *_, expected = network.forward_intermediates(images, intermediates_only=True)
        torch.testing.assert_close(backbone.eval()(images).feature_maps[-1], expected)


def test_refuses(folder: Path, tmp_path: Path) -> None:
    def refused(name: str, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message) as caught:
            train(folder, tmp_path / "run", encoder=str(tmp_path / name))
        assert "\n" not in str(caught.value)

    refused("missing", FileNotFoundError, "There is no folder .*missing for `encoder`")
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(tmp_path / "bert")
    ViTImageProcessor().save_pretrained(tmp_path / "bert")
    refused("bert", ValueError, "of 'bert', which has no feature maps")
    save_backbone("vit", tmp_path / "vit")
    shutil.copytree(tmp_path / "vit", tmp_path / "no-weights", ignore=shutil.ignore_patterns("model.safetensors"))
    refused("no-weights", OSError, "no-weights cannot be loaded: .*model.safetensors")
    shutil.copytree(tmp_path / "vit", tmp_path / "no-processor", ignore=shutil.ignore_patterns("preprocessor*"))
    refused("no-processor", OSError, "no-processor cannot be loaded: ")
    shutil.copytree(tmp_path / "vit", tmp_path / "other-size")
    ViTImageProcessor(size={"height": 96, "width": 96}).save_pretrained(tmp_path / "other-size")
    refused("other-size", ValueError, "The encoder does not take images of 96x96 pixels: ")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    shutil.copytree(tmp_path / "vit", tmp_path / "more-layers")
    (tmp_path / "more-layers" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    refused("more-layers", OSError, "more-layers cannot be loaded: its weights lack .* of a vit")


@pytest.mark.parametrize(
    "other", [{"init_from": "run/best"}, {"encoder_name": "resnet18"}, {"encoder_weights": "DEFAULT"}]
)
def test_two_encoders(folder: Path, tmp_path: Path, other: dict[str, str]) -> None:
    (name,) = other
    with pytest.raises(ValueError, match=f"`encoder` and `{name}` name two encoders: leave one out"):
        training_settings(folder, tmp_path, **{**SMALL, **other}, encoder="eyes")
