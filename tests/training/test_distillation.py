"""What a captioner learns from captions that others wrote."""

import json
from pathlib import Path

import pytest

from showattend.training.distillation import agreement, distilled_captions

DOG = ["a dog runs through the grass", "a dog runs on the grass", "the dog runs through grass", "nothing to see here"]
CAT = ["a cat sits on a red ball", "a cat on a ball", "one cat with a red ball", "a bird"]
BIRD = ["a bird flies over a photo", "a bird flies", "a black bird flies over a photo of a cat", "it flies"]
CAPTIONS = {"dog.jpg": DOG, "cat.jpg": CAT, "bird.jpg": BIRD}


def write(path: Path, captions: dict[str, list[str]]) -> Path:
    """As scripts/caption.py does."""
    rows = [{"path": f"photos/{name}", "caption": c, "score": -1.0} for name, own in captions.items() for c in own]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_agreement() -> None:
    scores = agreement(CAPTIONS | {"alone.jpg": ["a dog"]})
    assert scores["alone.jpg"] == [0]
    assert min(scores["dog.jpg"]) == scores["dog.jpg"][3]  # which no one else says
    assert scores["dog.jpg"][0] > 2.5
    assert {name: len(own) for name, own in scores.items()} == {**dict.fromkeys(CAPTIONS, 4), "alone.jpg": 1}


def test_distilled_captions(tmp_path: Path) -> None:
    said = {
        "dog.jpg": ["a dog runs through the grass", "a red photo"],
        "cat.jpg": ["a cat"],
        "bird.jpg": ["a bird flies"],
    }
    first = write(tmp_path / "first.jsonl", said | {"unknown.jpg": ["a dog"]})
    second = write(tmp_path / "second.jsonl", {"dog.jpg": ["a dog runs", "a dog runs through the grass"]})
    distilled = distilled_captions(CAPTIONS, [first, second])
    assert list(distilled) == list(CAPTIONS)
    assert set(distilled["dog.jpg"][:3]) == set(DOG[:3])  # the fourth agrees with none
    assert distilled["dog.jpg"][3:] == ["a dog runs through the grass", "a dog runs"]  # the better first, each once
    assert distilled["cat.jpg"][3:] == ["a cat"]
    assert "it flies" not in distilled["bird.jpg"]


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", {"dog.jpg": ["a dog"]})
    with pytest.raises(ValueError, match=r"few\.jsonl caption 1 of 3 training photos; bird\.jpg is missing"):
        distilled_captions(CAPTIONS, [few])
    with few.open("a") as file:
        file.write('{"path": "cat.jpg"}\n')
    with pytest.raises(ValueError, match=r"few\.jsonl, line 2: no row of path and caption"):
        distilled_captions(CAPTIONS, [few])
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        distilled_captions(CAPTIONS, [tmp_path / "none.jsonl"])
