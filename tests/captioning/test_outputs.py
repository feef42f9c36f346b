import csv
import json
from pathlib import Path
from typing import Any

import pytest

from showattend.captioning.outputs import CaptionFile, check_output, recover

NAMES = ["a.jpg", 'quo"te, comma.jpg', "new\nline.jpg", "return\r.jpg", "\udcff.jpg", "ünïcödé \\udcff.jpg", "z.jpg"]


def rows_of(name: str, captions: int = 1) -> list[dict[str, Any]]:
    texts = [f"a dog, number {number}" for number in range(captions)]
    return [{"path": name, "caption": text, "score": -0.5} for text in texts]


def write(path: Path, names: list[str], captions: int = 1) -> None:
    file = CaptionFile(path)
    for name in names:
        file.append(rows_of(name, captions))
    file.close()


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return [row | {"score": float(row["score"])} for row in csv.DictReader(file)]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_what_is_written_is_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"captions.{ending}"
    write(path, NAMES)
    assert read(path) == [row for name in NAMES for row in rows_of(name)]


@pytest.mark.parametrize("captions", [1, 2])
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_file_cut_anywhere_is_resumed(tmp_path: Path, ending: str, captions: int) -> None:
    names = NAMES[: 8 - 2 * captions]
    whole = tmp_path / f"whole.{ending}"
    write(whole, names, captions)
    data = whole.read_bytes()
    path = tmp_path / f"captions.{ending}"
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        done = recover(path, captions)
        assert data.startswith(path.read_bytes())
        write(path, [name for name in names if name not in done], captions)
        assert path.read_bytes() == data
    assert len(done) == len(names)


def test_other_files_are_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    for text in ('{"path": "a.jpg"}\n', "[1]\n", "path,caption,score\n", "\xff\n", '{"image": "a.jpg"}', "[1]"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"captions.jsonl, line 1: not a row of path, caption and score"):
            recover(path, 1)
        assert path.read_text(encoding="latin-1") == text
    path = tmp_path / "captions.csv"
    for text in ("image,caption,score\n", "path,caption,score\na.jpg,a dog\n", "image", '2" nails\n3 nails\n'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"captions.csv, line \d: not a row"):
            recover(path, 1)
        assert path.read_text() == text
    path.unlink()
    write(path, ["a.jpg", "b.jpg"])
    with pytest.raises(ValueError, match=r"row 3: not every image has 2 captions"):
        recover(path, 2)


@pytest.mark.parametrize(("started", "resumed"), [(3, 1), (4, 2), (2, 4), (3, 2), (2, 1)])
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_another_number_of_captions_is_not_resumed(tmp_path: Path, ending: str, started: int, resumed: int) -> None:
    path = tmp_path / f"captions.{ending}"
    write(path, ["a.jpg", "b.jpg"], started)
    data = path.read_bytes()
    with pytest.raises(ValueError, match=f"not every image has {resumed} captions; resume with the number"):
        recover(path, resumed)
    assert path.read_bytes() == data


def test_an_image_that_was_named_twice_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    write(path, ["a.jpg", "a.jpg"], 2)
    assert "a.jpg" in recover(path, 2)


def test_which_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in .jsonl or .csv"):
        check_output(tmp_path / "captions.txt", resume=False)
    with pytest.raises(OSError, match=r"there is no folder .*nowhere"):
        check_output(tmp_path / "nowhere" / "captions.csv", resume=True)
    path = tmp_path / "captions.JSONL"
    path.touch()
    check_output(path, resume=False)
    write(path, NAMES)
    check_output(path, resume=True)
    with pytest.raises(ValueError, match=r"already holds captions: continue it with `resume`"):
        check_output(path, resume=False)
