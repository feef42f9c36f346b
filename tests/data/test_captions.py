import csv
import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from showattend.data.captions import load_captions

Captions = dict[str, list[str]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv("RANK", raising=False)
    with caplog.at_level(logging.INFO, logger="showattend.data.problems"):
        yield


def reports(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "showattend.data.problems"]


def invented_captions(number: int, each: int = 2) -> Captions:
    return {f"{n:03}.jpg": [f"caption {k} of photo {n} ." for k in range(each)] for n in range(number)}


def write_image(path: Path, size: tuple[int, int] = (64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(path.name.encode())).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def write_kaggle(folder: Path, captions: Captions, images: str = "Images") -> Path:
    for name in captions:
        write_image(folder / images / name)
    with (folder / "captions.txt").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("image", "caption"), *((n, text) for n, texts in captions.items() for text in texts)]
        )
    return folder


def write_original(folder: Path, captions: Captions, images: str = "Flicker8k_Dataset") -> Path:
    for name in captions:
        write_image(folder / images / name)
    rows = [f"{name}#{k}\t{text}\n" for name, texts in captions.items() for k, text in enumerate(texts)]
    (folder / "Flickr8k.token.txt").write_text("".join(rows), encoding="utf-8")
    return folder


def write_splits(folder: Path, **splits: list[str]) -> None:
    for split, names in splits.items():
        (folder / f"Flickr_8k.{split}Images.txt").write_text("".join(f"{name}\n" for name in names))


def ids(dataset: datasets.DatasetDict) -> dict[str, list[str]]:
    return {split: list(rows["image_id"]) for split, rows in dataset.items()}


def all_captions(dataset: datasets.DatasetDict) -> Captions:
    return {row["image_id"]: row["captions"] for rows in dataset.values() for row in rows.remove_columns("image")}


# Layouts


def check_columns(dataset: datasets.DatasetDict) -> None:
    for rows in dataset.values():
        assert rows.column_names == ["image_id", "image", "captions"]
        assert rows.features["image"] == datasets.Image()
        assert rows.features["captions"] == datasets.List(datasets.Value("string"))
        assert rows[0]["image"].size == (64, 48)


@pytest.mark.parametrize("images", ["Images", "images"])
def test_kaggle_layout(tmp_path: Path, images: str, caplog: pytest.LogCaptureFixture) -> None:
    captions = invented_captions(8)
    dataset = load_captions(write_kaggle(tmp_path, captions, images))
    check_columns(dataset)
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 6, "validation": 1, "test": 1}
    assert all_captions(dataset) == captions
    assert reports(caplog) == [f"{tmp_path}: 6 train, 1 validation, 1 test images with 16 captions; left out: nothing"]
    assert caplog.records[-1].levelno == logging.INFO


@pytest.mark.parametrize("images", ["Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "."])
def test_original_layout(tmp_path: Path, images: str) -> None:
    captions = invented_captions(4)
    write_original(tmp_path, captions, images)
    write_splits(tmp_path, train=["003.jpg", "000.jpg"], dev=["001.jpg"], test=["002.jpg"])
    dataset = load_captions(str(tmp_path))
    check_columns(dataset)
    assert ids(dataset) == {"train": ["003.jpg", "000.jpg"], "validation": ["001.jpg"], "test": ["002.jpg"]}
    assert all_captions(dataset) == captions


def test_karpathy_layout(tmp_path: Path) -> None:
    captions = invented_captions(4)
    splits = ["train", "val", "test", "restval"]
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": text, "tokens": text.split()} for text in texts]}
        for (name, texts), split in zip(captions.items(), splits, strict=True)
    ]
    for name in captions:
        write_image(tmp_path / "Images" / name)
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"dataset": "flickr8k", "images": images}))
    dataset = load_captions(tmp_path)
    check_columns(dataset)
    assert ids(dataset) == {"train": ["000.jpg", "003.jpg"], "validation": ["001.jpg"], "test": ["002.jpg"]}
    assert all_captions(dataset) == captions


def hub_rows(folder: Path, numbers: range, **columns: list) -> datasets.Dataset:
    for n in numbers:
        write_image(folder / f"{n:03}.jpg")
    rows = datasets.Dataset.from_dict({"image": [str(folder / f"{n:03}.jpg") for n in numbers], **columns})
    return rows.cast_column("image", datasets.Image())


def test_hub_dataset_with_numbered_caption_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {
        split: hub_rows(tmp_path, numbers, **{f"caption_{k}": [f"{k} of {n}" for n in numbers] for k in (0, 10, 9)})
        for split, numbers in {"train": range(2), "validation": range(2, 3), "test": range(3, 4)}.items()
    }
    monkeypatch.setattr(datasets, "load_dataset", {"someone/flickr8k": datasets.DatasetDict(parts)}.__getitem__)
    dataset = load_captions("someone/flickr8k")
    check_columns(dataset)
    assert ids(dataset) == {"train": ["000.jpg", "001.jpg"], "validation": ["002.jpg"], "test": ["003.jpg"]}
    assert all_captions(dataset)["001.jpg"] == ["0 of 1", "9 of 1", "10 of 1"]


@pytest.mark.parametrize("column", ["captions", "caption", "sentences"])
def test_local_parquet_with_a_list_column(tmp_path: Path, column: str) -> None:
    folder = tmp_path / "data"
    for split, numbers in {"train": range(2), "validation": range(2, 3)}.items():
        rows = hub_rows(tmp_path / "photos", numbers, **{column: [[f"one of {n}", f"two of {n}"] for n in numbers]})
        folder.mkdir(exist_ok=True)
        rows.map(lambda row: row).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    dataset = load_captions(folder)
    check_columns(dataset)
    assert ids(dataset) == {"train": ["000.jpg", "001.jpg"], "validation": ["002.jpg"]}
    assert all_captions(dataset)["002.jpg"] == ["one of 2", "two of 2"]


def test_hub_dataset_with_a_split_column_and_no_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = hub_rows(
        tmp_path, range(4), captions=[[f"photo {n}"] for n in range(4)], split=["train", "test", "val", "odd"]
    )
    images = [{"bytes": Path(row["image"]["path"]).read_bytes(), "path": None} for row in undecoded(rows)]
    rows = rows.remove_columns("image").add_column("image", images)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(test=rows))
    dataset = load_captions("someone/photos")
    check_columns(dataset)
    assert ids(dataset) == {"train": ["test-00000"], "validation": ["test-00002"], "test": ["test-00001"]}


def undecoded(rows: datasets.Dataset) -> datasets.Dataset:
    return rows.cast_column("image", datasets.Image(decode=False))


def test_a_saved_dataset_is_loaded_again_unchanged(tmp_path: Path) -> None:
    dataset = load_captions(write_kaggle(tmp_path / "kaggle", invented_captions(8)))
    dataset.save_to_disk(tmp_path / "saved")
    again = load_captions(tmp_path / "saved")
    assert ids(again) == ids(dataset)
    assert all_captions(again) == all_captions(dataset)


@pytest.mark.parametrize(("split", "splits"), [("train", {"train", "validation", "test"}), ("test", {"test"})])
def test_a_hub_dataset_that_is_all_train_is_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, splits: set[str]
) -> None:
    rows = hub_rows(tmp_path, range(8), captions=[[f"photo {n}"] for n in range(8)])
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict({split: rows}))
    dataset = load_captions("someone/photos")
    assert dataset.keys() == splits
    assert sorted(all_captions(dataset)) == list(invented_captions(8))


def test_bad_rows_of_a_hub_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = hub_rows(tmp_path, range(4), captions=[["kept", " "], ["."], ["broken"], ["kept too"]])
    (tmp_path / "002.jpg").write_bytes((tmp_path / "002.jpg").read_bytes()[:-400])
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(train=rows, test=rows.select([])))
    dataset = load_captions("x/y")
    assert all_captions(dataset) == {"000.jpg": ["kept"], "003.jpg": ["kept too"]}
    assert reports(caplog)[:2] == ["x/y, train[0]: caption 1 is empty", "x/y, train[1]: caption 0 is empty"]
    assert reports(caplog)[2].startswith("x/y, train[2]: image '002.jpg': image file is truncated")
    assert reports(caplog)[3].endswith("left out: empty captions: 2; broken images: 1")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"captions": [["a"]]}, "no column image"),
        (
            {"image": ["x.jpg"], "en": ["one"], "de": ["eins"]},
            "no column of captions, only .*caption_column",
        ),
        ({"image": [7], "captions": [["a"]]}, "the column image holds .*, not images"),
    ],
)
def test_a_hub_dataset_without_the_columns(
    monkeypatch: pytest.MonkeyPatch, columns: dict[str, list], message: str
) -> None:
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name: datasets.DatasetDict(train=datasets.Dataset.from_dict(columns))
    )
    with pytest.raises(ValueError, match=message):
        load_captions("someone/words")


def test_a_source_that_fits_no_layout_says_what_is_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=r"captions\.txt .*Flickr8k\.token\.txt .*dataset_flickr8k\.json") as error:
        load_captions(tmp_path / "empty")
    assert "\n" not in str(error.value)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file is a file; expected a folder with captions\.txt"):
        load_captions(tmp_path / "file")

    def fail(name: str) -> None:
        raise ConnectionError("Couldn't reach 'no/where' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(OSError, match=r"cannot load 'no/where'.*Couldn't reach.*expected a folder with"):
        load_captions("no/where")


# Splits


def test_official_splits_are_used_for_kaggle_too_and_the_rest_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_kaggle(tmp_path, invented_captions(6))
    write_splits(tmp_path, train=["004.jpg", "001.jpg"], dev=["002.jpg"])
    dataset = load_captions(tmp_path)
    assert ids(dataset) == {"train": ["004.jpg", "001.jpg"], "validation": ["002.jpg"]}
    assert reports(caplog)[0] == "captions.txt: 3 images are in none of the split files and are left out"


def test_names_in_split_files_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_original(tmp_path, invented_captions(3))
    write_splits(tmp_path, train=["000.jpg", "gone.jpg", "001.jpg", "002.jpg", "000.jpg"], test=["001.jpg"])
    dataset = load_captions(tmp_path)
    assert ids(dataset) == {"train": ["000.jpg", "002.jpg"], "test": ["001.jpg"]}
    assert reports(caplog)[:-1] == [
        "Flickr_8k.trainImages.txt, row 2: 'gone.jpg' has no caption",
        "Flickr_8k.trainImages.txt, row 3: '001.jpg' is already listed in test",
        "Flickr_8k.trainImages.txt, row 5: '000.jpg' is already listed in train",
    ]
    assert "listed images without captions: 1; images listed twice: 2" in reports(caplog)[-1]


def test_an_image_in_two_of_karpathys_splits_is_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(tmp_path / "a.jpg")
    images = [{"filename": "a.jpg", "split": split, "sentences": [{"raw": split}]} for split in ("train", "test")]
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    assert ids(load_captions(tmp_path)) == {"test": ["a.jpg"]}
    assert reports(caplog)[0] == "dataset_flickr8k.json, row 1: 'a.jpg' is already listed in test"


def test_the_split_is_by_image_and_depends_on_names_alone(tmp_path: Path) -> None:
    captions = invented_captions(80, each=5)
    first = load_captions(write_kaggle(tmp_path / "one", captions))
    assert {split: len(rows) for split, rows in first.items()} == {"train": 60, "validation": 10, "test": 10}
    names = [name for split in ids(first).values() for name in split]
    assert sorted(names) == list(captions)  # each image once, so in one split
    assert all_captions(first) == captions

    shuffled = random.Random(1).sample(list(captions), len(captions))
    second = load_captions(write_kaggle(tmp_path / "two", {name: captions[name] for name in shuffled}))
    assert ids(second) == ids(first)
    fixed = [51, 23, 37, 38, 60, 70, 68, 22, 21, 20]  # another split would validate on what earlier runs trained on
    assert ids(first)["validation"] == [f"{number:03}.jpg" for number in fixed]


def test_a_broken_row_or_image_moves_no_other_image(tmp_path: Path) -> None:
    folder = write_kaggle(tmp_path, invented_captions(40))
    before = ids(load_captions(folder))
    bad = {before["test"][0], before["train"][3]}
    for name in bad:
        (folder / "Images" / name).write_bytes(b"")
    after = ids(load_captions(folder))
    assert after == {split: [name for name in names if name not in bad] for split, names in before.items()}

    gone = before["test"][0]
    write_kaggle(folder, {name: texts for name, texts in invented_captions(40).items() if name != gone})
    split_of = {name: split for split, names in ids(load_captions(folder)).items() for name in names}
    moved = [name for split, names in before.items() for name in names if split_of.get(name, split) != split]
    assert len(moved) <= 2  # one at each border


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (4, 4), (100, 6)])
def test_max_train_samples_counts_images_of_train_alone(tmp_path: Path, limit: int, expected: int) -> None:
    write_kaggle(tmp_path, invented_captions(8, each=5))
    whole = load_captions(tmp_path)
    dataset = load_captions(tmp_path, max_train_samples=limit)
    assert ids(dataset) == {**ids(whole), "train": ids(whole)["train"][:expected]}
    assert all(len(texts) == 5 for texts in dataset["train"]["captions"])


def test_max_train_samples_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_train_samples must be at least 1, got 0"):
        load_captions(tmp_path, max_train_samples=0)


# Bad rows


def test_bad_rows_of_the_kaggle_layout(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / "Images" / name)
    rows = [
        b"\xef\xbb\xbfimage,caption",  # a byte order mark
        b'a.jpg,"A dog, a ball and a ""no dogs"" sign ."',
        b"a.jpg,",
        b"a.jpg",
        b'a.jpg,"A quote that never ends',
        b"a.jpg,kept: the row after it",
        b"a.jpg,too, many, fields",
        b"gone.jpg,no such photo",
        b"",
        b"gone.jpg,no such photo again",
        b",nobody's caption",
        b"b.jpg,caf\xe9",
        "b.jpg,a café".encode(),
        b'b.jpg,twice and 5" wide ',
        b'b.jpg,twice and 5" wide ',
        b"b.jpg,. !",
    ]
    (tmp_path / "captions.txt").write_bytes(b"\r\n".join(rows))
    write_splits(tmp_path, train=["a.jpg", "gone.jpg"], dev=["b.jpg"])
    assert all_captions(load_captions(tmp_path)) == {
        "a.jpg": ['A dog, a ball and a "no dogs" sign .', "kept: the row after it"],
        "b.jpg": ["a café", 'twice and 5" wide', 'twice and 5" wide'],
    }
    *lines, summary = reports(caplog)
    assert sorted(lines) == [
        "captions.txt, row 11: no image is named",
        "captions.txt, row 12: not UTF-8 (invalid continuation byte)",
        "captions.txt, row 16: the caption is empty",
        "captions.txt, row 3: the caption is empty",
        "captions.txt, row 4: expected image,caption, got 'a.jpg'",
        "captions.txt, row 5: expected image,caption, got 'a.jpg,\"A quote that never ends'",
        "captions.txt, row 7: expected image,caption, got 'a.jpg,too, many, fields'",
        "captions.txt, rows 8, 10: image 'gone.jpg': not found",
    ]
    assert "1 train, 1 validation images with 5 captions" in summary
    assert summary.endswith("left out: malformed rows: 5; empty captions: 2; missing images: 1")
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_bad_rows_of_the_original_layout(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(tmp_path / "Images" / "a.jpg")
    rows = [
        '\N{BYTE ORDER MARK}a.jpg#0\tA caption , with a comma and a " quote .',
        "a.jpg.1#0\tthe name is wrong",
        "a.jpg#1\t",
        "a.jpg#2\t   ",
        "a.jpg no tab",
        "a.jpg\tno number",
        "#0\tno name",
        "a.jpg#3\tkept\u2028in one row",
    ]
    (tmp_path / "Flickr8k.token.txt").write_bytes("\r\n".join(rows).encode() + b"\r\n")
    write_splits(tmp_path, train=["a.jpg", "a.jpg.1"])
    assert all_captions(load_captions(tmp_path)) == {
        "a.jpg": ['A caption , with a comma and a " quote .', "kept\u2028in one row"]
    }
    assert sorted(reports(caplog)[:-1]) == [
        "Flickr8k.token.txt, row 2: image 'a.jpg.1': not found",
        "Flickr8k.token.txt, row 3: the caption is empty",
        "Flickr8k.token.txt, row 4: the caption is empty",
        "Flickr8k.token.txt, row 5: expected NAME.jpg#N<TAB>caption, got 'a.jpg no tab'",
        "Flickr8k.token.txt, row 6: expected NAME.jpg#N<TAB>caption, got 'a.jpg\\tno number'",
        "Flickr8k.token.txt, row 7: no image is named",
    ]


def test_bad_rows_of_the_karpathy_layout(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(tmp_path / "a.jpg")
    images = [
        {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "kept"}, {"raw": " "}]},
        {"filename": "b.jpg", "split": "train"},
        {"filename": "b.jpg", "split": "other", "sentences": [{"raw": "x"}]},
        {"filename": "b.jpg", "split": "train", "sentences": [{"raw": None}]},
        "b.jpg",
        {"filename": "b.jpg", "split": "test", "sentences": []},
        {"filename": "gone.jpg", "split": "val", "sentences": [{"raw": "x"}, {"raw": "y"}]},
    ]
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    assert all_captions(load_captions(tmp_path)) == {"a.jpg": ["kept"]}
    lines = reports(caplog)[:-1]
    for row in (2, 3, 4, 5):
        assert sum(f"dataset_flickr8k.json, row {row}: expected filename, split and sentences" in x for x in lines) == 1
    assert "dataset_flickr8k.json, row 1: the caption is empty" in lines
    assert "dataset_flickr8k.json, row 6: 'b.jpg' has no caption" in lines
    assert "dataset_flickr8k.json, row 7: image 'gone.jpg': not found" in lines
    assert len(lines) == 7


@pytest.mark.parametrize("content", ["{", "[]", '{"dataset": "flickr8k"}'])
def test_a_file_that_only_looks_like_karpathys_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset_flickr8k.json").write_text(content)
    with pytest.raises(ValueError, match=r"dataset_flickr8k.json must be JSON, an object with a list `images`"):
        load_captions(tmp_path)


def test_a_csv_without_its_header_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a.jpg,a dog\n")
    with pytest.raises(ValueError, match=r"captions\.txt, row 1: expected the header image,caption, got 'a.jpg,a dog'"):
        load_captions(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_broken_images_are_found_and_left_out(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("whole", "empty", "half", "end", "text"):
        write_image(tmp_path / "Images" / f"{name}{suffix}", size=(320, 240))
    images = tmp_path / "Images"
    whole = (images / f"whole{suffix}").read_bytes()
    (images / f"empty{suffix}").write_bytes(b"")
    (images / f"half{suffix}").write_bytes(whole[: len(whole) // 2])
    (images / f"end{suffix}").write_bytes(whole[: -len(whole) // 50])
    (images / f"text{suffix}").write_text("not a photo")
    names = ["whole", "empty", "half", "end", "text"]
    rows = [f"{name}{suffix},caption {k}\n" for name in names for k in range(2)]
    (tmp_path / "captions.txt").write_text("".join(["image,caption\n", *rows]))
    write_splits(tmp_path, train=[f"{name}{suffix}" for name in names])
    assert all_captions(load_captions(tmp_path)) == {f"whole{suffix}": ["caption 0", "caption 1"]}
    *lines, summary = reports(caplog)
    for line, (row, name) in zip(lines, zip((4, 6, 8, 10), names[1:], strict=True), strict=True):
        assert line.startswith(f"captions.txt, rows {row}, {row + 1}: image '{name}{suffix}': ")
    assert summary.endswith("left out: broken images: 4")


def test_very_many_problems_are_cut_short_but_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_kaggle(tmp_path, invented_captions(8))
    with (folder / "captions.txt").open("a") as file:
        file.write("malformed\n" * 1025)
    load_captions(folder)
    *lines, more, summary = reports(caplog)
    assert lines == [f"captions.txt, row {row}: expected image,caption, got 'malformed'" for row in range(18, 38)]
    assert more == "... and 1,005 more"
    assert summary.endswith("left out: malformed rows: 1,025")


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("image,caption\na.jpg,no photo\na.jpg,\n")
    with pytest.raises(ValueError, match=r"readable image with a caption \(empty captions: 1, missing images: 1\)"):
        load_captions(tmp_path)
    (tmp_path / "captions.txt").write_text("image,caption\n")
    with pytest.raises(ValueError, match=r"has no readable image with a caption \(no rows\)"):
        load_captions(tmp_path)


def test_only_the_main_process_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_kaggle(tmp_path, invented_captions(4))
    monkeypatch.setenv("RANK", "1")
    load_captions(folder)
    assert not reports(caplog)
    monkeypatch.setenv("RANK", "0")
    load_captions(folder)
    assert reports(caplog)
