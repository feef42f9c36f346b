"""Weights between those of two captioners."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from showattend.checkpoints import load_captioner
from showattend.hub.averaging import mix_checkpoints

MakeModel = Callable[..., ShowAttendForConditionalGeneration]


def save(model: ShowAttendForConditionalGeneration, processor: ShowAttendProcessor, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_parts_of_the_way(make_model: MakeModel, processor: ShowAttendProcessor, tmp_path: Path) -> None:
    models = [make_model(seed=seed) for seed in range(3)]
    models[1].encoder.load_state_dict(models[0].encoder.state_dict())
    models[2].encoder.load_state_dict(models[0].encoder.state_dict())
    start, *ends = (save(model, processor, tmp_path / str(number)) for number, model in enumerate(models))
    mix_checkpoints(start, dict(zip(ends, (0.3, 0.2), strict=True)), tmp_path / "mixed")
    mixed, mixed_processor = load_captioner(tmp_path / "mixed")
    for weights, *others in zip(*(model.parameters() for model in (mixed, *models)), strict=True):
        assert torch.allclose(weights, 0.5 * others[0] + 0.3 * others[1] + 0.2 * others[2], atol=1e-6)
    assert not torch.equal(mixed.decoder.fcn.weight, models[0].decoder.fcn.weight)
    # To the last bit: features that were kept on disk are those of the mixed encoder's frozen stages as well.
    for weights, same in zip(mixed.encoder.parameters(), models[0].encoder.parameters(), strict=True):
        assert torch.equal(weights, same)
    assert mixed_processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_captioners_that_do_not_mix(make_model: MakeModel, processor: ShowAttendProcessor, tmp_path: Path) -> None:
    start = save(make_model(), processor, tmp_path / "start")
    deeper = save(make_model(deep_output=True), processor, tmp_path / "deeper")
    with pytest.raises(ValueError, match="different sizes or vocabularies"):
        mix_checkpoints(start, {deeper: 0.5}, tmp_path / "mixed")
    with pytest.raises(ValueError, match=r"0\.9, 0\.5 must be at least 0, together at most 1"):
        mix_checkpoints(start, {start: 0.9, deeper: 0.5}, tmp_path / "mixed")
    with pytest.raises(ValueError, match="must be at least 0"):
        mix_checkpoints(start, {start: -0.1}, tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()
