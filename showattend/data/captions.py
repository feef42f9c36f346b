"""Captions and their photos, from any known layout of Flickr8k (or a dataset like it) to a `datasets.DatasetDict`.

Whatever is wrong in the files (a malformed row, a caption without a photo, a truncated photo) is reported with its file
and row, counted, and left out; everything else is kept.
"""

import csv
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

KARPATHY_FILE = "dataset_flickr8k.json"
KAGGLE_FILE = "captions.txt"
ORIGINAL_FILE = "Flickr8k.token.txt"
# Held-out splits come first: an image that is listed twice must not be trained on.
SPLIT_FILES = {
    "test": "Flickr_8k.testImages.txt",
    "validation": "Flickr_8k.devImages.txt",
    "train": "Flickr_8k.trainImages.txt",
}
SPLIT_NAMES = {"restval": "train", "val": "validation", "valid": "validation", "dev": "validation"} | {
    split: split for split in SPLIT_FILES
}
PHOTO_FOLDERS = ("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", ".")
CAPTION_COLUMNS = ("captions", "caption", "sentences")
EXPECTED = (
    f"expected a folder with {KAGGLE_FILE} (Kaggle's layout), {ORIGINAL_FILE} (the original layout) or {KARPATHY_FILE} "
    "(Karpathy's splits) and the photos, or a folder or Hub id that datasets can load"
)
MAX_REPORTED = 20
NOT_FOUND = "not found"  # what is wrong with a missing photo


class _Problem(NamedTuple):
    kind: str  # in the plural, as the summary counts it
    message: str


class _Caption(NamedTuple):
    row: int  # as an editor counts: 1 is the first line, headers included
    image_id: str
    text: str


class _Listing(NamedTuple):
    """An image's line in a split file."""

    where: str
    split: str
    image_id: str


class _Table(NamedTuple):
    """All images with at least one caption; the three run in parallel."""

    rows: datasets.Dataset  # image_id, image, captions
    splits: list[str]
    where: list[str]  # the file and rows that a row was read from, for reports


def load_captions(source: str | Path, *, max_train_samples: int | None = None, seed: int = 42) -> datasets.DatasetDict:
    """Loads an image captioning dataset; a row is an image with all its captions.

    Args:
        source: A folder in Kaggle's layout (`captions.txt`), the original one (`Flickr8k.token.txt`) or Karpathy's
            (`dataset_flickr8k.json`), with the photos in `Images/`, `images/`, `Flicker8k_Dataset/`,
            `Flickr8k_Dataset/` or the folder itself; or a folder or Hub id that `datasets` loads, with an `image`
            column and captions in one list column (`captions`, `caption` or `sentences`) or in `caption_0`, ...
        max_train_samples: Keep only the first so many train images.
        seed: Of the split by image, 75 / 12.5 / 12.5 % as in Flickr8k. Official splits are used where there are any
            (`Flickr_8k.{train,dev,test}Images.txt`, Karpathy's, the dataset's own), and then only those.

    Returns:
        The splits that are not empty, out of `train`, `validation` and `test`, with the columns `image_id` (str, the
        photo's file name if it has one, unique), `image` (`datasets.Image`, decoded when read) and `captions` (list
        of str).

    Raises:
        ValueError: If no layout fits `source`, or no image with a caption is left.
        OSError: If `datasets` cannot load `source`.
    """
    if max_train_samples is not None and max_train_samples < 1:
        raise ValueError(f"max_train_samples must be at least 1, got {max_train_samples}")
    folder = Path(source).expanduser().absolute()
    problems: list[_Problem] = []
    if folder.is_file():
        raise ValueError(f"{source} is a file; {EXPECTED}")
    if any((folder / name).is_file() for name in (KARPATHY_FILE, KAGGLE_FILE, ORIGINAL_FILE)):
        table = _read_folder(folder, seed, problems)
    else:
        table = _read_dataset(str(folder if folder.is_dir() else source), seed, problems)

    indices: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for index in _with_readable_photo(table, problems):
        indices[table.splits[index]].append(index)
    indices["train"] = indices["train"][:max_train_samples]
    dataset = datasets.DatasetDict({split: table.rows.select(chosen) for split, chosen in indices.items() if chosen})
    _report(source, dataset, problems)
    if not dataset:
        counts = ", ".join(f"{kind}: {count:,}" for kind, count in Counter(p.kind for p in problems).items())
        raise ValueError(f"{source} has no image with both a caption and a readable photo ({counts or 'no rows'})")
    return dataset


# Folders of text files


def _read_folder(folder: Path, seed: int, problems: list[_Problem]) -> _Table:
    listings: list[_Listing] = []
    if (path := folder / KARPATHY_FILE).is_file():
        captions = _read_karpathy(path, listings, problems)
    elif (path := folder / KAGGLE_FILE).is_file():
        captions = list(_read_csv(path, problems))
    else:
        path = folder / ORIGINAL_FILE
        captions = list(_read_token_file(path, problems))
    for split, name in SPLIT_FILES.items():
        # Karpathy's splits stand in his file, so that nothing else is asked.
        if path.name != KARPATHY_FILE and (folder / name).is_file():
            for row, line in _lines(folder / name, problems):
                listings.append(_Listing(f"{name}, row {row}", split, line.strip()))

    captions_of: dict[str, list[_Caption]] = {}
    for caption in captions:
        if not caption.image_id:
            problems.append(_Problem("malformed rows", f"{path.name}, row {caption.row}: no image is named"))
        elif not caption.text:
            problems.append(_Problem("empty captions", f"{path.name}, row {caption.row}: the caption is empty"))
        else:
            captions_of.setdefault(caption.image_id, []).append(caption)

    has_official_splits = path.name == KARPATHY_FILE or any((folder / name).is_file() for name in SPLIT_FILES.values())
    if has_official_splits:
        split_of = _official_splits(listings, captions_of, problems)
        if unlisted := len(captions_of) - len(split_of):
            _log(logging.WARNING, f"{path.name}: {unlisted:,} images are in none of the split files and are left out")
    else:
        split_of = _random_splits(captions_of, seed)

    photo_folders = [folder / name for name in PHOTO_FOLDERS if (folder / name).is_dir()]
    columns: dict[str, list[Any]] = {"image_id": [], "image": [], "captions": []}
    where = []
    for image_id in split_of:
        paths = (str(photos / image_id) for photos in photo_folders)
        columns["image_id"].append(image_id)
        columns["image"].append(next(filter(os.path.isfile, paths), None))
        columns["captions"].append([caption.text for caption in captions_of[image_id]])
        rows = list(dict.fromkeys(str(caption.row) for caption in captions_of[image_id]))
        where.append(f"{path.name}, row{'s' if len(rows) > 1 else ''} {', '.join(rows)}")
    features = datasets.Features(
        image_id=datasets.Value("string"), image=datasets.Image(), captions=datasets.List(datasets.Value("string"))
    )
    return _Table(datasets.Dataset.from_dict(columns, features), list(split_of.values()), where)


def _lines(path: Path, problems: list[_Problem]) -> Iterator[tuple[int, str]]:
    """Rows that are not blank, with their numbers. Bytes are decoded line by line, so that a bad one costs one row."""
    with path.open("rb") as file:
        for row, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if row == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                problems.append(_Problem("malformed rows", f"{path.name}, row {row}: not UTF-8 ({error.reason})"))
                continue
            if line.strip():
                yield row, line


def _read_csv(path: Path, problems: list[_Problem]) -> Iterator[_Caption]:
    lines = _lines(path, problems)
    row, header = next(lines, (1, ""))
    if [column.strip().lower() for column in next(csv.reader([header]), [])] != ["image", "caption"]:
        raise ValueError(f"{path}, row {row}: expected the header image,caption, got {header[:80]!r}")
    for row, line in lines:
        try:
            # Line by line and strict: a stray quote must not swallow the rows below it.
            image_id, text = next(csv.reader([line], strict=True))
        except (csv.Error, ValueError):
            message = f"{path.name}, row {row}: expected image,caption, got {line[:80]!r}"
            problems.append(_Problem("malformed rows", message))
        else:
            yield _Caption(row, image_id.strip(), text.strip())


def _read_token_file(path: Path, problems: list[_Problem]) -> Iterator[_Caption]:
    for row, line in _lines(path, problems):
        if match := re.fullmatch(r"([^\t]*)#\d+\t(.*)", line):
            yield _Caption(row, match[1].strip(), match[2].strip())
        else:
            message = f"{path.name}, row {row}: expected NAME.jpg#N<TAB>caption, got {line[:80]!r}"
            problems.append(_Problem("malformed rows", message))


def _read_karpathy(path: Path, listings: list[_Listing], problems: list[_Problem]) -> list[_Caption]:
    """Adds each image's split to `listings`; an image's row is its place in the file, 1 being the first."""
    try:
        images = list(json.loads(path.read_bytes().decode("utf-8-sig"))["images"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be JSON, an object with a list `images` ({error!r})") from error
    captions = []
    for row, image in enumerate(images, start=1):
        try:
            image_id = image["filename"].strip()
            split = SPLIT_NAMES[image["split"]]
            texts = [sentence["raw"].strip() for sentence in image["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            message = f"{path.name}, row {row}: expected filename, split and sentences ({error!r})"
            problems.append(_Problem("malformed rows", message))
        else:
            listings.append(_Listing(f"{path.name}, row {row}", split, image_id))
            captions += [_Caption(row, image_id, text) for text in texts]
    # Held-out splits first, as in SPLIT_FILES.
    listings.sort(key=lambda listing: list(SPLIT_FILES).index(listing.split))
    return captions


# Splits


def _official_splits(
    listings: list[_Listing], captions_of: dict[str, list[_Caption]], problems: list[_Problem]
) -> dict[str, str]:
    split_of: dict[str, str] = {}
    for where, split, image_id in listings:
        if image_id in split_of:
            message = f"{where}: {image_id!r} is listed before, in {split_of[image_id]}"
            problems.append(_Problem("images listed twice", message))
        elif image_id not in captions_of:
            problems.append(_Problem("listed images without captions", f"{where}: {image_id!r} has no caption"))
        else:
            split_of[image_id] = split
    return split_of


def _random_splits(image_ids: Iterable[str], seed: int) -> dict[str, str]:
    # Ordered by a hash of seed and name: unlike after a shuffle, an image more or less moves hardly any other one.
    ordered = sorted(image_ids, key=lambda image_id: hashlib.sha256(f"{seed} {image_id}".encode()).digest())
    held_out = round(len(ordered) / 8)
    return {
        image_id: "test" if rank < held_out else "validation" if rank < 2 * held_out else "train"
        for rank, image_id in enumerate(ordered)
    }


# Datasets of the `datasets` library


def _read_dataset(source: str, seed: int, problems: list[_Problem]) -> _Table:
    try:
        saved = any((Path(source) / name).is_file() for name in ("dataset_dict.json", "state.json"))
        parts = datasets.load_from_disk(source) if saved else datasets.load_dataset(source)
        if isinstance(parts, datasets.Dataset):
            parts = datasets.DatasetDict(train=parts)
        rows = datasets.concatenate_datasets(list(parts.values()))
    except Exception as error:  # whatever the loader of a file format raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"cannot load {source!r} with datasets ({reason}); {EXPECTED}") from error
    if "image" not in rows.column_names:
        raise ValueError(f"{source} has no column image, only {', '.join(rows.column_names)}; {EXPECTED}")
    try:
        rows = rows.cast_column("image", datasets.Image())
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{source}: the column image holds no images but {rows.features['image']}") from error

    positions = [(name, row) for name, part in parts.items() for row in range(len(part))]
    where = [f"{source}, {name}[{row}]" for name, row in positions]
    captions = []
    for place, texts in zip(where, _captions_of_rows(rows, source), strict=True):
        captions.append([text.strip() for text in texts or [] if text and text.strip()])
        for number, text in enumerate(texts or [None]):
            if not text or not text.strip():
                problems.append(_Problem("empty captions", f"{place}: caption {number} is empty"))

    image_ids = _image_ids_of_rows(rows, [f"{name}-{row:05}" for name, row in positions])
    names = [str(name) for name in rows["split"]] if "split" in rows.column_names else [name for name, _ in positions]
    splits: list[str | None]
    if len(set(names)) == 1 and SPLIT_NAMES.get(names[0]) not in ("validation", "test"):
        split_of = _random_splits(image_ids, seed)
        splits = [split_of[image_id] for image_id in image_ids]
    else:
        splits = [SPLIT_NAMES.get(name) for name in names]

    rows = rows.select_columns(["image"]).add_column("image_id", image_ids).add_column("captions", captions)
    rows = rows.select_columns(["image_id", "image", "captions"])
    kept = []
    for index, split in enumerate(splits):
        if split is None:
            message = f"{where[index]}: expected the split {', '.join(SPLIT_NAMES)}, got {names[index]!r}"
            problems.append(_Problem("rows of unknown splits", message))
        elif captions[index]:
            kept.append(index)
    return _Table(rows.select(kept), [str(splits[index]) for index in kept], [where[index] for index in kept])


def _captions_of_rows(rows: datasets.Dataset, source: str) -> list[list[str | None] | None]:
    numbered = [name for name in rows.column_names if re.fullmatch(r"caption_?\d+", name)]
    if numbered:
        numbered.sort(key=lambda name: int(re.sub(r"\D", "", name)))
        return [list(texts) for texts in zip(*(rows[name] for name in numbered), strict=True)]
    for name in CAPTION_COLUMNS:
        feature = rows.features.get(name)
        if isinstance(feature, datasets.List | datasets.LargeList) and feature.feature == datasets.Value("string"):
            return list(rows[name])
    # A row a caption is refused as well: its images could not be kept apart when splitting.
    raise ValueError(
        f"{source} has no list of captions an image: expected a column {', '.join(CAPTION_COLUMNS)} that holds lists "
        f"of str, or the columns caption_0, caption_1, ...; got {', '.join(rows.column_names)}"
    )


def _image_ids_of_rows(rows: datasets.Dataset, numbers: list[str]) -> list[str]:
    """The names that the dataset gives its images if they are unique, else numbers."""
    for column in ("image_id", "filename", "image"):
        if column == "image":
            images = rows.select_columns("image").cast_column("image", datasets.Image(decode=False))
            paths = ((row["image"] or {}).get("path") for row in images)
            names = [path and Path(path).name for path in paths]
        elif column in rows.column_names:
            names = list(rows[column])
        else:
            continue
        if None not in names and len(set(names)) == len(names):
            return [str(name) for name in names]
    return numbers


# Photos


def _with_readable_photo(table: _Table, problems: list[_Problem]) -> list[int]:
    images = table.rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    # map remembers its result for datasets that lie in the cache of datasets.
    checked = images.map(_check_photos, batched=True, batch_size=512, remove_columns="image", desc="Checking photos")
    readable = []
    rows = zip(table.rows["image_id"], table.where, checked["fault"] if len(checked) else [], strict=True)
    for index, (image_id, where, fault) in enumerate(rows):
        if not fault:
            readable.append(index)
        else:
            kind = "missing photos" if fault == NOT_FOUND else "broken photos"
            problems.append(_Problem(kind, f"{where}: photo {image_id!r}: {fault}"))
    return readable


def _check_photos(batch: dict[str, list[Any]]) -> dict[str, list[str]]:
    with ThreadPoolExecutor() as pool:
        return {"fault": list(pool.map(_photo_fault, batch["image"]))}


def _photo_fault(photo: dict[str, Any] | None) -> str:
    """What keeps a photo from being decoded, or an empty string."""
    if not photo or not (photo["bytes"] is not None or photo["path"]):
        return NOT_FOUND
    try:
        with Image.open(photo["path"] if photo["bytes"] is None else BytesIO(photo["bytes"])) as image:
            # At an eighth of its size a JPEG costs a fraction of the time, yet all its data is read.
            image.draft(None, (1, 1))
            ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # Pillow's plugins raise whatever their parsers meet
        return str(error) or type(error).__name__
    return ""


# Reports


def _report(source: str | Path, dataset: datasets.DatasetDict, problems: list[_Problem]) -> None:
    for problem in problems[:MAX_REPORTED]:
        _log(logging.WARNING, problem.message)
    if len(problems) > MAX_REPORTED:
        _log(logging.WARNING, f"... and {len(problems) - MAX_REPORTED:,} more")
    sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in dataset.items()) or "no"
    captions = sum(len(texts) for rows in dataset.values() for texts in rows["captions"])
    left_out = "; ".join(f"{kind}: {count:,}" for kind, count in Counter(p.kind for p in problems).items())
    level = logging.WARNING if problems else logging.INFO
    _log(level, f"{source}: {sizes} images with {captions:,} captions; left out: {left_out or 'nothing'}")


def _log(level: int, message: str) -> None:
    # Every process of a distributed run reads the data; one of them speaks.
    if os.environ.get("RANK", "0") == "0":
        logger.log(level, message)
