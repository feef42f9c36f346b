"""Maps, figures, the app and the occlusion test with a grid that is neither square nor of cells of 32 pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import backbone_config
from PIL import Image

from modeling_showattend import ShowAttendProcessor
from showattend.app.api import describe
from showattend.attention import occlusion
from showattend.attention.figures import draw_attention
from showattend.attention.maps import attend
from showattend.attention.streaming import stream_captions

GRID = 2, 4  # patches of 16x16 pixels of an image of 32x64


@pytest.fixture
def model(make_model: Callable[..., Any]) -> Any:
    model = make_model(encoder_name=None, backbone_config=backbone_config("dinov2_with_registers"))
    model.generation_config.max_length = 9
    with torch.no_grad():
        model.decoder.fcn.bias[:5] = -100  # words only
    return model


@pytest.fixture
def wide(processor: ShowAttendProcessor) -> ShowAttendProcessor:
    processor.image_processor.size = {"height": 32, "width": 64}
    return processor


@pytest.fixture
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((120, 50))


def test_maps_and_figures(model: Any, wide: ShowAttendProcessor, image: Image.Image, tmp_path: Path) -> None:
    attended = attend(model, wide, image)
    assert attended.grids.shape == (len(attended.words), *GRID)
    inputs = wide(images=image, return_tensors="pt")
    ids = model.generate(**inputs)
    (weights,) = model(**inputs, decoder_input_ids=ids[:, :1]).cross_attentions
    np.testing.assert_allclose(attended.grids[0].ravel(), weights.flatten().detach(), rtol=1e-5)
    (*_, last) = stream_captions(model, wide, image)
    assert last[0].grids.shape == attended.grids.shape
    for suffix in ("png", "svg", "gif"):
        draw_attention(image, attended, tmp_path / f"figure.{suffix}")


def test_app(model: Any, wide: ShowAttendProcessor, image: Image.Image) -> None:
    (caption,) = describe(model, wide, image)["captions"]
    assert np.shape(caption["grids"]) == (len(caption["words"]), *GRID)


def test_covered_pixels(model: Any, wide: ShowAttendProcessor, image: Image.Image) -> None:
    cells = torch.zeros(1, *GRID, dtype=torch.bool)
    cells[0, 1, 2] = True
    greyed = occlusion._greyed(torch.ones(1, 3, 32, 64), cells)
    expected = torch.ones(32, 64)
    expected[16:32, 32:48] = 0
    assert torch.equal(greyed, expected.expand(1, 3, 32, 64))
    measured = occlusion.measure_occlusion(model, wide, [[image]], num_cells=[2], cover_pixels=True)
    assert measured.positions == 8
