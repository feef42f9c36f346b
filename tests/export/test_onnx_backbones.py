"""Captioners with a `backbone_config` in ONNX."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backbones import backbone_config, needs_timm
from PIL import Image

from modeling_showattend import ShowAttendProcessor
from modeling_showattend.modeling_showattend import ShowAttendEncoder
from showattend.attention.maps import attend

if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]:
    pytest.skip(f"the export is tested with {', '.join(missing)}: pip install them", allow_module_level=True)

from showattend.export.onnx_captioner import OnnxCaptioner
from showattend.export.onnx_export import export_onnx

MakeModel = Callable[..., Any]


@pytest.fixture
def save(make_model: MakeModel, processor: ShowAttendProcessor, tmp_path: Path) -> Callable[..., Any]:
    """Writes a captioner, and images to calibrate on; returns the model."""

    def save(kind: str, height: int, width: int) -> Any:
        model = make_model(encoder_name=None, backbone_config=backbone_config(kind))
        processor.image_processor.size = {"height": height, "width": width}
        model.save_pretrained(tmp_path / "captioner")
        processor.save_pretrained(tmp_path / "captioner")
        (tmp_path / "images").mkdir()
        for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)):
            Image.fromarray(pixels).resize((90, 70), Image.Resampling.NEAREST).save(tmp_path / f"images/{number}.png")
        return model

    return save


@pytest.mark.parametrize(
    ("kind", "height", "width"),
    [
        ("convnext", 64, 96),
        ("swin", 64, 64),
        ("dinov2_with_registers", 64, 64),
        ("clip_vision_model", 64, 64),
        ("resnet", 64, 64),
        pytest.param("timm_backbone", 64, 64, marks=needs_timm),
    ],
)
def test_captions_and_attention(
    save: Callable[..., Any], processor: ShowAttendProcessor, tmp_path: Path, kind: str, height: int, width: int
) -> None:
    model = save(kind, height, width)
    report = export_onnx(tmp_path / "captioner", tmp_path / "onnx", ["float32", "int8"], tmp_path / "images")
    assert report["float32"]["values"] < 1e-5 and report["int8"]["values"] < 0.3
    captioner = OnnxCaptioner.from_pretrained(tmp_path / "onnx", "float32")
    for path in sorted((tmp_path / "images").iterdir()):
        expected, caption = attend(model, processor, path, num_beams=3), captioner(path, num_beams=3)
        assert caption.text == expected.caption
        assert caption.attentions.shape[1:] == expected.grids.shape[1:] == model.encoder.grid_shape(height, width)


def test_what_cannot_be_exported(save: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder whose steps depend on the pixels: torch 2.8 exports a graph that computes something else."""
    save("convnext", 64, 64)
    forward = ShowAttendEncoder.forward

    def data_dependent(self: ShowAttendEncoder, pixel_values: Any, **kwargs: Any) -> Any:
        return forward(self, pixel_values if pixel_values.mean() > 0 else -pixel_values, **kwargs)

    monkeypatch.setattr(ShowAttendEncoder, "forward", data_dependent)
    with pytest.raises(ValueError, match=r"(torch cannot export|graphs differ).*: nothing was written") as error:
        export_onnx(tmp_path / "captioner", tmp_path / "onnx", ["float32"])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "onnx").exists()
