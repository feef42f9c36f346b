"""The folder that is shared: half the size, complete, and float32 when it is loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from backbones import backbone_config
from safetensors.torch import load_file
from torch import nn

import showattend.hub.release as packing
from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from showattend.checkpoints import load_captioner


@pytest.fixture
def trained(
    make_model: Callable[..., ShowAttendForConditionalGeneration], processor: ShowAttendProcessor, tmp_path: Path
) -> Path:
    make_model(finetune_last_stages=1).save_pretrained(tmp_path / "best")
    processor.save_pretrained(tmp_path / "best")
    return tmp_path / "best"


def test_packed_folder(trained: Path, tmp_path: Path, pixel_values: torch.Tensor) -> None:
    out = tmp_path / "packed"
    size = packing.pack_checkpoint(trained, out, num_beams=3, length_penalty=1.5)
    assert (
        size
        == sum(file.stat().st_size for file in out.iterdir())
        < 0.6 * (trained / "model.safetensors").stat().st_size
    )
    assert {file.name for file in out.iterdir()} == {file.name for file in trained.iterdir()}
    stored = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float16}
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "float32" and config["finetune_last_stages"] == 0

    model, _ = load_captioner(out)
    loaded_as_saved = ShowAttendForConditionalGeneration.from_pretrained(out)
    assert loaded_as_saved.dtype == model.dtype == torch.float32
    assert (model.generation_config.num_beams, model.generation_config.length_penalty) == (3, 1.5)
    original, _ = load_captioner(trained)
    expected = original.generate(pixel_values=pixel_values, num_beams=3, length_penalty=1.5)
    assert torch.equal(model.generate(pixel_values=pixel_values), expected)


def test_statistics_beyond_float16(
    make_model: Callable[..., ShowAttendForConditionalGeneration],
    processor: ShowAttendProcessor,
    tmp_path: Path,
    pixel_values: torch.Tensor,
) -> None:
    """Weights for pixels from 0 to 255, as those of the original ResNet are, have variances above 65,504."""
    model = make_model()
    convolution, norm = model.encoder.resnet[0], model.encoder.resnet[1]
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        expected = model.encoder(pixel_values=pixel_values)[0]
        convolution.weight *= 300
        norm.running_mean *= 300
        norm.running_var *= 300**2
    assert norm.running_var.max() > 65504
    model.save_pretrained(tmp_path / "best")
    processor.save_pretrained(tmp_path / "best")
    packing.pack_checkpoint(tmp_path / "best", tmp_path / "packed")
    packed, _ = load_captioner(tmp_path / "packed")
    with torch.no_grad():
        features = packed.encoder(pixel_values=pixel_values)[0]
    assert (features - expected).abs().max() < 0.02 * expected.abs().max()

    model.decoder.fcn.weight.data[0, 0] = 1e6
    model.save_pretrained(tmp_path / "best")
    with pytest.raises(ValueError, match=r"weights outside float16's range in decoder\.fcn\.weight"):
        packing.pack_checkpoint(tmp_path / "best", tmp_path / "packed")


def test_other_encoder(
    make_model: Callable[..., ShowAttendForConditionalGeneration],
    processor: ShowAttendProcessor,
    tmp_path: Path,
    pixel_values: torch.Tensor,
) -> None:
    model = make_model(encoder_name=None, backbone_config=backbone_config("convnext"))
    model.save_pretrained(tmp_path / "best")
    processor.save_pretrained(tmp_path / "best")
    packing.pack_checkpoint(tmp_path / "best", tmp_path / "packed")
    stored = load_file(tmp_path / "packed" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    packed = ShowAttendForConditionalGeneration.from_pretrained(tmp_path / "packed")
    assert {weights.dtype for weights in packed.parameters()} == {torch.float32}
    with torch.no_grad():
        features, expected = (m.encoder(pixel_values=pixel_values)[0] for m in (packed, model))
    assert (features - expected).abs().max() < 0.02 * expected.abs().max()


def test_other_files_stay(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    packing.pack_checkpoint(trained, tmp_path / "packed")
    (tmp_path / "packed" / "README.md").write_text("a card")
    (tmp_path / "packed" / "onnx").mkdir()
    (tmp_path / "packed" / "onnx" / "captioner.json").write_text("{}")
    packing.pack_checkpoint(trained, tmp_path / "packed", num_beams=2)
    assert (tmp_path / "packed" / "README.md").read_text() == "a card"
    assert (tmp_path / "packed" / "onnx" / "captioner.json").read_text() == "{}"
    assert load_captioner(tmp_path / "packed")[0].generation_config.num_beams == 2
    assert "packed keeps README.md, onnx: check that they fit the new weights." in caplog.text


def test_mistakes(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="generate has no setting number_of_beams"):
        packing.pack_checkpoint(trained, tmp_path / "packed", number_of_beams=3)
    with pytest.raises(OSError, match="no checkpoint folder"):
        packing.pack_checkpoint(tmp_path / "nowhere", tmp_path / "packed")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "dog.jpg").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="images holds no captioner and would be deleted"):
        packing.pack_checkpoint(trained, tmp_path / "images")
    assert (tmp_path / "images" / "dog.jpg").read_bytes() == b"precious"
    monkeypatch.setattr(packing, "MAX_BYTES", 1_000_000)
    with pytest.raises(OSError, match=r"packed could not be written \(\d+ MB, more than 1\)"):
        packing.pack_checkpoint(trained, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
