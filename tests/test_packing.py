"""The folder that is shared: half the size, complete, and float32 when it is loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import modeling_showattend.packing as packing
from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from modeling_showattend.captioner import load_captioner


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


def test_mistakes(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="generate knows no setting number_of_beams"):
        packing.pack_checkpoint(trained, tmp_path / "packed", number_of_beams=3)
    with pytest.raises(OSError, match="no checkpoint folder"):
        packing.pack_checkpoint(tmp_path / "nowhere", tmp_path / "packed")
    monkeypatch.setattr(packing, "MAX_BYTES", 1_000_000)
    with pytest.raises(OSError, match=r"packed could not be written \(\d+ MB, more than 1\)"):
        packing.pack_checkpoint(trained, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
