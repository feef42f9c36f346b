"""What a captioner learns from captions that it generates for its training images."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from showattend.training import distillation
from showattend.training.distillation import best_captions, generate_captions

DOG = ["a dog runs through the grass", "a dog runs on the grass", "the dog runs through grass", "nothing to see here"]
CAT = ["a cat sits on a red ball", "a cat on a ball", "one cat with a red ball", "a bird"]
REFERENCES = {"dog.jpg": DOG, "cat.jpg": CAT}


def test_best_captions() -> None:
    generated = {
        "dog.jpg": ["a red photo", "a dog runs", "a dog runs through the grass", "a cat sits on a red ball"],
        "cat.jpg": ["a cat"],
    }
    best = best_captions(generated, REFERENCES, 2)
    assert best == {"dog.jpg": ["a dog runs through the grass", "a dog runs"], "cat.jpg": ["a cat"]}


@pytest.fixture
def generate(
    make_model: Callable[..., ShowAttendForConditionalGeneration],
    processor: ShowAttendProcessor,
    image_features: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], dict[str, list[str]]]:
    """Captions of seven images in batches of two, into a file of that name."""
    monkeypatch.setattr(distillation, "BATCH_SIZE", 2)
    features = torch.cat([image_features, 2 * image_features, -image_features[:1]])

    def run(name: str) -> dict[str, list[str]]:
        return generate_captions(
            make_model(seed=1),
            processor,
            [f"{number}.jpg" for number in range(7)],
            lambda rows: {"image_features": features[list(rows)]},
            tmp_path / name,
            Accelerator(cpu=True),
            max_length=8,
            seed=0,
        )

    return run


def test_generated_captions(generate: Callable[[str], dict[str, list[str]]], tmp_path: Path) -> None:
    generated = generate("all.jsonl")
    assert list(generated) == [f"{number}.jpg" for number in range(7)]
    for captions in generated.values():
        assert 5 <= len(captions) <= 15 and len(set(captions)) == len(captions)
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert {row["image_id"]: row["captions"] for row in rows} == generated
    assert len({tuple(captions) for captions in generated.values()}) > 3


@pytest.mark.parametrize("size", [0, 1, 40, 500, -1])
def test_killed_while_generating(generate: Callable[[str], dict[str, list[str]]], tmp_path: Path, size: int) -> None:
    """Whatever part of the file had been written, the captions are those of an uninterrupted run."""
    generated = generate("all.jsonl")
    whole = (tmp_path / "all.jsonl").read_bytes()
    (tmp_path / "broken.jsonl").write_bytes(whole[:size])
    assert generate("broken.jsonl") == generated
    assert generate("broken.jsonl") == generated
