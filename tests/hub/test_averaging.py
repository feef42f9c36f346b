"""Weights between those of two captioners."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from showattend.checkpoints import load_captioner
from showattend.commands.average_checkpoints import main
from showattend.hub.averaging import average_checkpoints

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
    average_checkpoints(start, dict(zip(ends, (0.3, 0.2), strict=True)), tmp_path / "average")
    average, average_processor = load_captioner(tmp_path / "average")
    for weights, *others in zip(*(model.parameters() for model in (average, *models)), strict=True):
        assert torch.allclose(weights, 0.5 * others[0] + 0.3 * others[1] + 0.2 * others[2], atol=1e-6)
    assert not torch.equal(average.decoder.fcn.weight, models[0].decoder.fcn.weight)
    # To the last bit, so that cached features stay valid for the averaged encoder.
    for weights, same in zip(average.encoder.parameters(), models[0].encoder.parameters(), strict=True):
        assert torch.equal(weights, same)
    assert average_processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_captioners_that_cannot_be_averaged(
    make_model: MakeModel, processor: ShowAttendProcessor, tmp_path: Path
) -> None:
    start = save(make_model(), processor, tmp_path / "start")
    deeper = save(make_model(deep_output=True), processor, tmp_path / "deeper")
    with pytest.raises(ValueError, match="different sizes or vocabularies"):
        average_checkpoints(start, {deeper: 0.5}, tmp_path / "average")
    with pytest.raises(ValueError, match=r"0\.9, 0\.5 must each be at least 0 and add up to at most 1"):
        average_checkpoints(start, {start: 0.9, deeper: 0.5}, tmp_path / "average")
    for share in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="must each be at least 0"):
            average_checkpoints(start, {start: share}, tmp_path / "average")
    with pytest.raises(FileExistsError, match="holds no captioner and would be deleted"):
        average_checkpoints(start, {start: 0.1}, tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([f"{tmp_path}/average", str(start), str(start), "0.1", str(start), "0.2"])
    assert not (tmp_path / "average").exists()
