"""Files of captions that a program generated, in every format and with every fault."""

import json
from pathlib import Path
from typing import Any

import pytest

from showattend.captioning.outputs import CaptionFile
from showattend.data.caption_files import read_captions

IMAGES = ["COCO_val2014_000000000042.jpg", "dog.jpg", "deep/cat.png"]


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_coco_results(tmp_path: Path) -> None:
    results = [
        {"image_id": 42, "caption": "a bird"},
        {"image_id": "dog.jpg", "caption": "a dog", "score": 3},
        {"image_id": "cat", "caption": ""},
    ]
    assert read_captions(write(tmp_path / "results.json", results), IMAGES) == {
        "COCO_val2014_000000000042.jpg": ["a bird"],
        "dog.jpg": ["a dog"],
        "deep/cat.png": [""],
    }


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.CSV"])
def test_what_the_caption_command_writes(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = CaptionFile(tmp_path / name)
    for path, captions in {
        "my images/dog.jpg": ['a "dog",\nrunning', "a dog"],
        "elsewhere/bird.jpg": ["a bird"],
        "b/cat.png": ["a cat"],
    }.items():
        file.append({"path": path, "caption": caption, "score": -1.0} for caption in captions)
    file.close()
    assert read_captions(tmp_path / name, IMAGES) == {
        "dog.jpg": ['a "dog",\nrunning', "a dog"],
        "deep/cat.png": ["a cat"],
    }
    assert "1 captions of other images are ignored" in caplog.text


def test_a_name_is_never_guessed(tmp_path: Path) -> None:
    images = ["a/1.jpg", "b/1.jpg", "cat_7.jpg", "3.jpg", "x3.jpg"]
    rows = [("1.jpg", "?"), ("1", "?"), ("dog_7.jpg", "?"), ("b/1.jpg", "b"), ("7", "a cat"), ("3", "three")]
    lines = "".join(json.dumps({"image_id": name, "caption": caption}) + "\n" for name, caption in rows)
    assert read_captions(write(tmp_path / "captions.jsonl", lines), images) == {
        "b/1.jpg": ["b"],
        "cat_7.jpg": ["a cat"],
        "3.jpg": ["three"],
    }
    lines = '{"path": "one/3.jpg", "caption": "x"}\n{"path": "two/3.jpg", "caption": "y"}\n'
    with pytest.raises(ValueError, match=r"line 2: 'two/3\.jpg' and 'one/3\.jpg' are both the image '3\.jpg'"):
        read_captions(write(tmp_path / "captions.jsonl", lines), images)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.txt", "a dog", r"captions\.txt is not a file of captions: expected COCO results"),
        ("a.json", "[{", r"a\.json, line 1: invalid JSON .*expected COCO results"),
        ("a.json", {"images": []}, r"a\.json holds no list"),
        ("a.json", [{"image_id": 42}], r"a\.json, entry 1: \{'image_id': 42\}; expected"),
        ("a.json", [{"image_id": True, "caption": "a dog"}], "entry 1: "),
        ("a.json", [{"image_id": 42, "caption": "a"}, ["dog"]], "entry 2: "),
        (
            "a.jsonl",
            '{"path": "dog.jpg", "caption": "a dog"}\n\n{"path": "dog.jpg"\n',
            r"a\.jsonl, line 3: invalid JSON",
        ),
        ("a.jsonl", '{"path": "dog.jpg", "caption": 3}\n', r"a\.jsonl, line 1: "),
        ("a.csv", "image,text\ndog.jpg,a dog\n", r"a\.csv, line 2: .*expected"),
        ("a.csv", "path,caption\ndog.jpg,a dog\ndog.jpg\n", r"a\.csv, line 3: "),
        ("a.csv", "path,caption\ndog.jpg,a dog, running\n", r"a\.csv, line 2: more cells than columns"),
        ("a.json", "[" * 100_000, r"a\.json, line 1: invalid JSON \(maximum recursion"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl, line 1: invalid JSON \(maximum recursion"),
        ("a.jsonl", f'{{"image_id": {"9" * 5000}}}', r"a\.jsonl, line 1: invalid JSON"),
    ],
)
def test_faults_name_the_row(name: str, content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_captions(write(tmp_path / name, content), IMAGES)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[\xff")
    with pytest.raises(ValueError, match=r"a\.json is not UTF-8 \(invalid start byte at byte 1\)"):
        read_captions(tmp_path / "a.json", IMAGES)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_captions(tmp_path / "none.json", IMAGES)
