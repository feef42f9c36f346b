import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import layouts
import pytest
from layouts import CAPTIONS, SPLITS
from tiny_flickr import draw, make_folder

from showattend.commands import prune_tokenizer
from showattend.data.captions import load_captions


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with caplog.at_level(logging.INFO, logger="showattend.data.problems"):
        yield


def captions_by_split(dataset: datasets.DatasetDict) -> dict[str, list[tuple[str, list[str]]]]:
    return {
        split: [(row["image_id"], row["captions"]) for row in rows.select_columns(["image_id", "captions"])]
        for split, rows in dataset.items()
    }


@pytest.mark.parametrize("write", layouts.WITH_SPLITS, ids=lambda write: write.__name__)
def test_the_same_rows_from_every_layout_with_splits(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "data")
    dataset = load_captions(tmp_path / "data")
    assert captions_by_split(dataset) == {
        split: [(name, CAPTIONS[name]) for name in SPLITS if SPLITS[name] == split] for split in ("train", "validation")
    }
    for rows in dataset.values():
        assert rows.column_names == ["image_id", "image", "captions"]
        assert rows.features["image"] == datasets.Image()
        for row in rows:
            expected = layouts.decoded(row["image_id"])
            assert row["image"].size == (64, 64) and row["image"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("write", layouts.WITHOUT_SPLITS, ids=lambda write: write.__name__)
def test_the_same_rows_from_every_layout_without_splits(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "data")
    layouts.kaggle(tmp_path / "kaggle")
    dataset = load_captions(tmp_path / "data")
    found = captions_by_split(dataset)
    assert {name: sorted(texts) for rows in found.values() for name, texts in rows} == {
        name: sorted(texts) for name, texts in CAPTIONS.items()
    }
    expected = captions_by_split(load_captions(tmp_path / "kaggle"))
    assert {split: [name for name, _ in rows] for split, rows in found.items()} == {
        split: [name for name, _ in rows] for split, rows in expected.items()
    }


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "showattend.data.problems"][:-1]


def test_columns_may_be_named(tmp_path: Path) -> None:
    layouts.write_images(tmp_path / "csv")
    layouts.write_csv(tmp_path / "csv" / "list.csv", [["Where", "what", "caption"], ["red_circle.jpg", "a text", "x"]])
    rows = {"image": [{"path": None, "bytes": draw("red", "circle")}], "en": ["a text"], "zh": ["x"]}
    features = datasets.Features(image=datasets.Image(), en=datasets.Value("string"), zh=datasets.Value("string"))
    (tmp_path / "parquet").mkdir()
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "parquet" / "data.parquet")
    for folder, image, caption in (("csv", "where", "what"), ("parquet", None, "en")):
        dataset = load_captions(tmp_path / folder, image_column=image, caption_column=caption)
        assert dataset["train"]["captions"][:] == [["a text"]]
    with pytest.raises(ValueError, match=r"no column of captions, only image, en, zh: .* with `caption_column`"):
        load_captions(tmp_path / "parquet")
    with pytest.raises(ValueError, match=r"no column picture, only image, en, zh: .* with `image_column`"):
        load_captions(tmp_path / "parquet", image_column="picture", caption_column="en")
    layouts.original(tmp_path / "original")
    with pytest.raises(ValueError, match=r"Flickr8k\.token\.txt has no columns: leave `image_column`"):
        load_captions(tmp_path / "original", image_column="where")


def test_commands_name_the_columns_with_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layouts.saved(tmp_path / "data")
    folder = make_folder(tmp_path / "tiny")
    given = ["--dataset", str(tmp_path / "data"), "--tokenizer", str(folder / "vocab.txt")]
    given += ["--output-dir", str(tmp_path / "pruned")]
    prune_tokenizer.main([*given, "--image-column", "picture", "--caption-column", "words"])
    assert " tokens" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        prune_tokenizer.main([*given, "--caption-column", "wurds"])
    assert "no column wurds, only picture, words: " in (error := capsys.readouterr().err)
    assert "with --caption-column" in error


def test_an_image_is_in_one_split_whatever_its_rows_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same bytes without a name; the same id; and a number that restarts in each split."""
    circles = [draw(colour, "circle") for colour in layouts.COLOURS]

    def write(name: str, images: dict[str, list[int]], **columns: dict[str, list]) -> Path:
        (tmp_path / name).mkdir()
        for split, numbers in images.items():
            rows: dict[str, list] = {"image": [{"path": None, "bytes": circles[number]} for number in numbers]}
            rows |= {"caption": [f"{split} {number}" for number in numbers]}
            rows |= {column: values[split] for column, values in columns.items()}
            types = {column: datasets.Value("int64") for column in columns}
            features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"), **types)
            datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / name / f"{split}.parquet")
        return tmp_path / name

    dataset = load_captions(write("bytes", {"train": [0, 1, 0], "validation": [1, 2]}))
    assert captions_by_split(dataset) == {
        "train": [("train-00000", ["train 0", "train 0"])],
        "validation": [("train-00001", ["train 1", "validation 1"]), ("validation-00001", ["validation 2"])],
    }
    assert problems(caplog) == [f"{tmp_path}/bytes, train[1]: 'train-00001' is already listed in validation"]

    one_id = write("id", {"train": [0, 1], "validation": [2]}, image_id={"train": [5, 5], "validation": [6]})
    assert captions_by_split(load_captions(one_id))["train"] == [("5", ["train 0", "train 1"])]
    anew = write("anew", {"train": [0, 1], "validation": [2]}, image_id={"train": [0, 1], "validation": [0]})
    assert {split: len(rows) for split, rows in load_captions(anew).items()} == {"train": 2, "validation": 1}


def test_files_of_one_name_in_two_folders_are_two_images(tmp_path: Path) -> None:
    for split, shape in (("train", "circle"), ("test", "square")):
        (tmp_path / split).mkdir()
        (tmp_path / split / "1.jpg").write_bytes(draw("red", shape))
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps({"file_name": "1.jpg", "text": shape}))
    assert captions_by_split(load_captions(tmp_path)) == {
        "train": [("train/1.jpg", ["circle"])],
        "test": [("test/1.jpg", ["square"])],
    }


def test_a_folder_with_two_datasets_needs_a_name(tmp_path: Path) -> None:
    layouts.karpathy(tmp_path)
    other = (tmp_path / "dataset_coco.json").read_text().replace("A red circle", "One")
    (tmp_path / "dataset_flickr30k.json").write_text(other)
    with pytest.raises(ValueError, match=r"several lists of captions: .*dataset_coco\.json, dataset_flickr30k\.json"):
        load_captions(tmp_path)
    assert load_captions(tmp_path / "dataset_coco.json")["train"]["captions"][0][0] == "A red circle ."
    assert load_captions(tmp_path / "dataset_flickr30k.json")["train"]["captions"][0][0] == "One ."


def test_an_unknown_layout_is_described(tmp_path: Path) -> None:
    layouts.write_images(tmp_path / "images")
    (tmp_path / "labels.xml").write_text("<xml/>")
    (tmp_path / "notes.csv").write_text("name,age\nx,3\n")
    (tmp_path / "config.json").write_text('{"images": 3}')
    with pytest.raises(
        FileNotFoundError, match=r"no list of captions, only 8 \.jpg, 1 \.csv, 1 \.json, 1 \.xml; exp"
    ) as e:
        load_captions(tmp_path)
    assert "`image,caption`, `a.jpg,A dog runs.`" in str(e.value) and "\n" not in str(e.value)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg", "label": "x"}\n')
    with pytest.raises(ValueError, match=r"metadata\.jsonl has no columns of images and captions: expected file_name"):
        load_captions(tmp_path)


@pytest.mark.parametrize("name", ["captions.txt", "metadata.jsonl", "Flickr8k.token.txt"])
def test_a_list_in_utf16_is_named(tmp_path: Path, name: str) -> None:
    layouts.write_images(tmp_path)
    text = '{"file_name": "red_circle.jpg", "text": "a"}\n' if "json" in name else "image,caption\nred_circle.jpg,a\n"
    (tmp_path / name).write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match=rf"{name} is in UTF-16: save it as UTF-8"):
        load_captions(tmp_path)
    with pytest.raises(ValueError, match=rf"{name} is in UTF-16: save it as UTF-8"):
        load_captions(tmp_path / name)


def test_what_is_beside_the_list_does_not_matter(tmp_path: Path) -> None:
    layouts.kaggle(tmp_path)
    expected = captions_by_split(load_captions(tmp_path))
    (tmp_path / "notes.txt").write_bytes("Notizen".encode("utf-16"))
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    assert captions_by_split(load_captions(tmp_path)) == expected


@pytest.mark.parametrize("name", ["captions.CSV", "captions.JSONL", "captions.JSON"])
def test_a_list_whose_suffix_is_in_capitals(tmp_path: Path, name: str) -> None:
    layouts.write_images(tmp_path)
    row = '{"file_name": "red_circle.jpg", "text": "kept"}'
    texts = {"CSV": "file_name,text\nred_circle.jpg,kept\n", "JSONL": f"{row}\n", "JSON": f"[{row}]"}
    (tmp_path / name).write_text(texts[name.rpartition(".")[2]])
    for source in (tmp_path, tmp_path / name):
        assert load_captions(source)["train"]["captions"][:] == [["kept"]]


def test_names_and_captions_that_no_file_can_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.write_images(tmp_path)
    rows = [{"file_name": "red_circle.jpg", "text": "kept"}, {"file_name": "green_circle.jpg", "text": "half \ud83d"}]
    rows += [{"file_name": "blue_\udcff.jpg", "text": "of a name"}, {"file_name": "nul\0.jpg", "text": "of a name"}]
    lines = [*map(json.dumps, rows), "[" * 100_000]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    assert [row["captions"] for row in load_captions(tmp_path)["train"]] == [["kept"]]
    assert sorted(problems(caplog)) == [
        "metadata.jsonl, row 2: half a surrogate pair, which is not text, in 'green_circle.jpg'",
        "metadata.jsonl, row 3: half a surrogate pair, which is not text, in 'blue_\\udcff.jpg'",
        "metadata.jsonl, row 4: image 'nul\\x00.jpg': embedded null byte",
        f"metadata.jsonl, row 5: expected JSON, got {'[' * 80!r}",
    ]


def test_cells_with_line_breaks_and_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.write_images(tmp_path)
    rows = [
        'file_name,split,"captions"',
        'red_circle.jpg,train,"in two\nlines, with ""quotes"""',
        "green_circle.jpg,train,\"['a list', 'as pandas writes it']\"",
        'blue_circle.jpg,val,"[""as JSON"", ""\\u00e9""]"',
        'white_circle.jpg,val,"never ended',
        "red_square.jpg,val,[laughs]",
    ]
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    assert captions_by_split(load_captions(tmp_path)) == {
        "train": [
            ("red_circle.jpg", ['in two\nlines, with "quotes"']),
            ("green_circle.jpg", ["a list", "as pandas writes it"]),
        ],
        "validation": [("blue_circle.jpg", ["as JSON", "é"]), ("red_square.jpg", ["[laughs]"])],
    }
    assert problems(caplog) == [
        "metadata.csv, row 6: expected file_name,split,captions, got 'white_circle.jpg,val,\"never ended'"
    ]


def test_bad_rows_of_coco(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layouts.write_images(tmp_path / "train2017")
    content = {
        "images": [
            {"id": 1, "file_name": "red_circle.jpg"},
            {"id": 2},
            {"id": 3, "file_name": "gone.jpg"},
            {"id": 4, "file_name": "green_circle.jpg"},
            "five",
        ],
        "annotations": [
            {"image_id": 1, "caption": "kept"},
            {"image_id": 1, "caption": " "},
            {"image_id": 2, "caption": "of no image"},
            {"image_id": 3, "caption": "of no file"},
            {"image_id": 1},
            {"image_id": 1, "caption": 5},
            {"image_id": 1, "caption": "kept too"},
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_train2017.json").write_text(json.dumps(content))
    assert captions_by_split(load_captions(tmp_path)) == {"train": [("red_circle.jpg", ["kept", "kept too"])]}
    file = "captions_train2017.json"
    assert [line.split(" (")[0] for line in problems(caplog)] == [
        f"{file}, images[1]: expected id and file_name",
        f"{file}, images[4]: expected id and file_name",
        f"{file}, annotations[2]: expected the image_id of one of the images, and a caption",
        f"{file}, annotations[4]: expected the image_id of one of the images, and a caption",
        f"{file}, annotations[5]: expected the image_id of one of the images, and a caption",
        f"{file}, annotations[1]: the caption is empty",
        f"{file}, images[3]: 'green_circle.jpg' has no caption",
        f"{file}, annotations[3]: image 'gone.jpg': not found",
    ]


@pytest.mark.parametrize("name", ["data.jsonl", "list.csv"])
def test_a_thousand_rows_with_every_fault(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Every tenth row is faulty; each fault is counted, and no other row is lost."""
    whole = draw("red", "circle")
    damaged = {"text.jpg": b"text", "empty.jpg": b"", "half.jpg": whole[: len(whole) // 2], "end.jpg": whole[:-2]}
    for file, content in damaged.items():
        (tmp_path / file).write_bytes(content)
    (tmp_path / "folder.jpg").mkdir()
    for n in range(1000):
        (tmp_path / f"{n:03}.jpg").write_bytes(whole)
    jsonl = name.endswith("jsonl")

    def line(image: object, caption: object, split: object = "train") -> bytes:
        if jsonl:
            return json.dumps({"image": image, "caption": caption, "split": split}).encode()
        return ",".join("" if cell is None else str(cell) for cell in (image, caption, split)).encode()

    faults: list[tuple[str, bytes]] = [
        ("malformed rows", b'{"image": "x.jpg", "caption": ' if jsonl else b"x.jpg"),
        ("malformed rows", b'{"image": "x.jpg"}' if jsonl else b'x.jpg,"never ended,train'),
        ("malformed rows", b"[1, 2]" if jsonl else b"x.jpg,one,two,three"),
        ("malformed rows", line("x.jpg", 7) if jsonl else b'x.jpg,"stray" quote,train'),
        ("malformed rows", b"caf\xe9"),
        ("malformed rows", line(None, "of no image")),
        ("empty captions", line("x.jpg", " ")),
        ("empty captions", line("x.jpg", None)),
        ("missing images", line("gone.jpg", "a photo that is gone")),
        ("missing images", line("https://example.org/a.jpg", "on the net")),
        *(("broken images", line(file, "a broken photo")) for file in [*damaged, "folder.jpg"]),
        ("rows of unknown splits", line("000.jpg", "of another split", "odd")),
    ]
    lines, expected = [] if jsonl else [b"image,caption,split"], Counter[str]()
    for n in range(1000):
        split = ("train", "val", "test")[n % 3]
        lines.append(line(f"{n:03}.jpg", f"caption {n}", split))
        if n % 10 == 0:
            kind, content = faults[n // 10 % len(faults)]
            lines.append(content)
            expected[kind] += 1
    # A faulty image counts once, however many rows it has; a faulty split counts once per image.
    expected["missing images"], expected["broken images"], expected["rows of unknown splits"] = 2, 5, 1
    (tmp_path / name).write_bytes(b"\n".join(lines))
    dataset = load_captions(tmp_path)
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 334, "validation": 333, "test": 333}
    texts = {text for rows in dataset.values() for own in rows["captions"] for text in own}
    assert texts >= {f"caption {n}" for n in range(1000)}
    summary = caplog.records[-1].getMessage().split("left out: ")[1]
    assert dict(part.rsplit(": ", 1) for part in summary.split("; ")) == {k: str(n) for k, n in expected.items()}


@pytest.mark.parametrize("name", ["data.parquet", "data.tar", "data.zip", "empty.tar"])
def test_damaged_data_files_give_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"nonsense" if name != "empty.tar" else bytes(10240))
    with pytest.raises(OSError, match=r"^cannot load '.*' with datasets \(.*\); expected a folder with") as error:
        load_captions(tmp_path)
    assert "\n" not in str(error.value)
