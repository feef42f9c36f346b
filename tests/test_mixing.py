"""Weights between those of two captioners."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from modeling_showattend.captioner import load_captioner
from modeling_showattend.mixing import mix_checkpoints

MakeModel = Callable[..., ShowAttendForConditionalGeneration]


def save(model: ShowAttendForConditionalGeneration, processor: ShowAttendProcessor, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_part_of_the_way(make_model: MakeModel, processor: ShowAttendProcessor, tmp_path: Path) -> None:
    models = [make_model(seed=seed) for seed in (0, 1)]
    start, end = (save(model, processor, tmp_path / str(number)) for number, model in enumerate(models))
    mix_checkpoints(start, end, 0.25, tmp_path / "mixed")
    mixed, mixed_processor = load_captioner(tmp_path / "mixed")
    for weights, first, second in zip(mixed.parameters(), *(model.parameters() for model in models), strict=True):
        assert torch.allclose(weights, 0.75 * first + 0.25 * second, atol=1e-6)
    assert not torch.equal(mixed.decoder.fcn.weight, models[0].decoder.fcn.weight)
    assert mixed_processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_captioners_that_do_not_mix(make_model: MakeModel, processor: ShowAttendProcessor, tmp_path: Path) -> None:
    start = save(make_model(), processor, tmp_path / "start")
    deeper = save(make_model(deep_output=True), processor, tmp_path / "deeper")
    with pytest.raises(ValueError, match="different sizes or vocabularies"):
        mix_checkpoints(start, deeper, 0.5, tmp_path / "mixed")
    with pytest.raises(ValueError, match=r"between 0 and 1, not be 1\.5"):
        mix_checkpoints(start, start, 1.5, tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()
