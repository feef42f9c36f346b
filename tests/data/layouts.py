"""Writes the same images and captions in every layout."""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
from PIL import Image
from tiny_flickr import COLOURS, captions_of, draw

# File name -> split and captions. Few and small: a training run from each layout takes seconds.
NAMES = {f"{colour}_{shape}.jpg": (colour, shape) for shape in ("circle", "square") for colour in COLOURS}
CAPTIONS = {name: captions_of(*drawing)[:2] for name, drawing in NAMES.items()}
SPLITS = {name: "validation" if number >= 6 else "train" for number, name in enumerate(NAMES)}
SHORT = {"train": "train", "validation": "val"}


def decoded(name: str) -> Image.Image:
    return Image.open(io.BytesIO(draw(*NAMES[name])))


def write_images(folder: Path, split: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in NAMES.items():
        if split in (None, SPLITS[name]):
            (folder / name).write_bytes(draw(*drawing))


def write_csv(path: Path, rows: list[list[str]], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        if delimiter == "|":
            file.writelines("| ".join(row) + "\n" for row in rows)
        else:
            csv.writer(file, delimiter=delimiter).writerows(rows)


def karpathy(folder: Path) -> None:
    write_images(folder / "val2014")
    images = [
        {"filepath": "val2014", "filename": name, "split": SHORT[SPLITS[name]], "cocoid": number}
        | {"sentences": [{"raw": text, "tokens": text.split()} for text in texts]}
        for number, (name, texts) in enumerate(CAPTIONS.items())
    ]
    images[0]["split"] = "restval"
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))


def coco(folder: Path, year: int = 2017) -> None:
    (folder / "annotations").mkdir(parents=True)
    for split, short in SHORT.items():
        write_images(folder / f"{short}{year}", split)
        images = [{"id": 7 + n, "file_name": name} for n, name in enumerate(NAMES) if SPLITS[name] == split]
        annotations = [
            {"id": 10 * n + k, "image_id": 7 + n, "caption": text}
            for k in range(2)  # not in the order of the images
            for n, name in enumerate(NAMES)
            for text in CAPTIONS[name][k : k + 1]
            if SPLITS[name] == split
        ]
        captions = {"info": {}, "images": images, "annotations": annotations}
        (folder / "annotations" / f"captions_{short}{year}.json").write_text(json.dumps(captions))
        objects = {"images": images, "annotations": [{"id": 1, "image_id": 7, "bbox": [0, 0, 1, 1]}]}
        (folder / "annotations" / f"instances_{short}{year}.json").write_text(json.dumps(objects))


def coco_2014(folder: Path) -> None:
    coco(folder, 2014)
    (folder / "annotations" / "captions_train2017.json").write_text('{"images": [], "annotations": [], "caption": 0}')


def flickr30k_annotations(folder: Path) -> None:
    """`flickr_annotations_30k.csv`, beside the unpacked `flickr30k-images.zip`."""
    write_images(folder / "flickr30k-images")
    rows = [["raw", "sentids", "split", "filename", "img_id"]]
    for number, (name, texts) in enumerate(CAPTIONS.items()):
        rows.append([json.dumps(texts), "[0, 1]", SHORT[SPLITS[name]], name, str(number)])
    write_csv(folder / "flickr_annotations_30k.csv", rows)


def imagefolder_jsonl(folder: Path) -> None:
    for split in SHORT:
        write_images(folder / split, split)
        lines = [json.dumps({"file_name": n, "captions": CAPTIONS[n]}) for n in NAMES if SPLITS[n] == split]
        (folder / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def imagefolder_csv(folder: Path) -> None:
    """One row per caption."""
    for split in SHORT:
        write_images(folder / split / "images", split)
        rows = [[f"images/{n}", text] for n in NAMES if SPLITS[n] == split for text in CAPTIONS[n]]
        write_csv(folder / split / "metadata.csv", [["file_name", "text"], *rows])


def json_lines(folder: Path) -> None:
    """One file per split, one row per caption, images in one folder."""
    write_images(folder / "images")
    for split, short in SHORT.items():
        rows = [{"image": f"images/{n}", "caption": text} for n in NAMES if SPLITS[n] == split for text in CAPTIONS[n]]
        (folder / f"{short}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def json_list(folder: Path) -> None:
    """As in BLIP's annotations."""
    write_images(folder / "pictures")
    for split, short in SHORT.items():
        rows = [{"image": n, "caption": texts} for n, texts in CAPTIONS.items() if SPLITS[n] == split]
        (folder / f"coco_karpathy_{short}.json").write_text(json.dumps(rows))


def parquet(folder: Path, names: bool = True) -> None:
    """One row per caption, the image repeated."""
    folder.mkdir(parents=True)
    features = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    for split in SHORT:
        pairs = [(n, text) for n in NAMES if SPLITS[n] == split for text in CAPTIONS[n]]
        images = [{"path": n if names else None, "bytes": draw(*NAMES[n])} for n, _ in pairs]
        rows = datasets.Dataset.from_dict({"image": images, "text": [text for _, text in pairs]}, features)
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def webdataset(folder: Path) -> None:
    folder.mkdir(parents=True)
    for split in SHORT:
        with tarfile.open(folder / f"{split}-000.tar", "w") as tar:
            for name in (name for name in NAMES if SPLITS[name] == split):
                for suffix, content in (
                    ("jpg", draw(*NAMES[name])),
                    ("json", json.dumps({"captions": CAPTIONS[name]}).encode()),
                ):
                    member = tarfile.TarInfo(f"{Path(name).stem}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def zipped(folder: Path) -> None:
    """Image folders in archives, as in many datasets on the Hub."""
    imagefolder_jsonl(folder / "unpacked")
    for split in SHORT:
        shutil.make_archive(str(folder / split), "zip", folder / "unpacked" / split)
    shutil.rmtree(folder / "unpacked")


def saved(folder: Path) -> None:
    """By `save_to_disk`, with columns of other names."""
    parts = {}
    for split in SHORT:
        names = [name for name in NAMES if SPLITS[name] == split]
        images = [{"path": name, "bytes": draw(*NAMES[name])} for name in names]
        features = datasets.Features(picture=datasets.Image(), words=datasets.List(datasets.Value("string")))
        columns = {"picture": images, "words": [CAPTIONS[name] for name in names]}
        parts[split] = datasets.Dataset.from_dict(columns, features)
    datasets.DatasetDict(parts).save_to_disk(folder)


WITH_SPLITS: list[Callable[[Path], None]] = [
    *(karpathy, coco, coco_2014, flickr30k_annotations, imagefolder_jsonl, imagefolder_csv),
    *(json_lines, json_list, parquet, webdataset, zipped, saved),
]


def _rows() -> list[tuple[str, int, str]]:
    return [(name, number, text) for name, texts in CAPTIONS.items() for number, text in enumerate(texts)]


def kaggle(folder: Path) -> None:
    write_images(folder / "Images")
    write_csv(folder / "captions.txt", [["image", "caption"], *([name, text] for name, _, text in _rows())])


def original(folder: Path) -> None:
    write_images(folder / "Flicker8k_Dataset")
    (folder / "Flickr8k.token.txt").write_text("".join(f"{name}#{n}\t{text}\n" for name, n, text in _rows()))


def flickr30k_token(folder: Path) -> None:
    write_images(folder / "flickr30k-images")
    (folder / "results_20130124.token").write_text("".join(f"{name}#{n}\t{text}\n" for name, n, text in _rows()))


def flickr30k_bars(folder: Path) -> None:
    """Kaggle's results.csv: bars, a space after each, no quoting; images two folders of the same name down."""
    write_images(folder / "flickr30k_images" / "flickr30k_images")
    rows = [[name, str(n), text] for name, n, text in _rows()]
    path = folder / "flickr30k_images" / "results.csv"
    write_csv(path, [["image_name", "comment_number", "comment"], *rows], delimiter="|")


def flickr30k_commas(folder: Path) -> None:
    write_images(folder / "flickr30k_images")
    rows = [[name, str(n), text] for name, n, text in _rows()]
    write_csv(folder / "captions.txt", [["image_name", "comment_number", "comment"], *rows])


def tabs(folder: Path) -> None:
    write_images(folder)
    write_csv(folder / "list.tsv", [["caption", "path"], *([text, name] for name, _, text in _rows())], delimiter="\t")


def one_parquet(folder: Path) -> None:
    """Without splits, the images in another order."""
    folder.mkdir(parents=True)
    features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
    pairs = sorted((name, number, text) for name, number, text in _rows())
    images = [{"path": name, "bytes": draw(*NAMES[name])} for name, _, _ in pairs]
    columns = {"image": images, "caption": [text for _, _, text in pairs]}
    datasets.Dataset.from_dict(columns, features).to_parquet(folder / "data.parquet")


WITHOUT_SPLITS: list[Callable[[Path], None]] = [
    *(kaggle, original, flickr30k_token, flickr30k_bars, flickr30k_commas, tabs, one_parquet),
]
