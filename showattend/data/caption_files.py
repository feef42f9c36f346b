"""Reads generated captions: COCO results, and the JSON Lines and CSV that `showattend caption` writes."""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

EXPECTED = (
    'expected COCO results ([{"image_id": 42, "caption": "a dog"}, ...] in FILE.json), or FILE.jsonl or FILE.csv with '
    "image_id or path, and caption"
)


def read_captions(path: str | Path, image_ids: Iterable[str]) -> dict[str, list[str]]:
    """Read the captions of some images.

    A row identifies its image by id, by path, by file name without suffix or, as in COCO's results, by the number at
    the end of the name: 42 for `COCO_val2014_000000000042.jpg`.

    Args:
        path: `.json` in the COCO results format; `.jsonl` or `.csv` with `image_id` or `path`, and `caption`. Other
            fields are ignored.

    Returns:
        image id -> its captions in the order of the file. Rows of other images are ignored, and a warning counts them.

    Raises:
        ValueError: If a row has another format, or two names in the file mean the same image.
    """
    path, index = Path(path), _index(image_ids)
    captions: dict[str, list[str]] = {}
    named: dict[str, str] = {}
    ignored = 0
    for where, name, caption in _rows(path):
        image_id = next(filter(None, map(index.get, _keys(name, number=name.isdecimal()))), None)
        if image_id is None:
            ignored += 1
        elif named.setdefault(image_id, name) != name:
            raise ValueError(f"{path}, {where}: {name!r} and {named[image_id]!r} are both the image {image_id!r}.")
        else:
            captions.setdefault(image_id, []).append(caption)
    if ignored:
        logger.warning(f"{path}: {ignored} captions of other images are ignored.")
    return captions


def _index(image_ids: Iterable[str]) -> dict[str | int, str | None]:
    """The image of each name; None if several images share it."""
    index: dict[str | int, str | None] = {}
    exact: dict[str | int, str | None] = {}
    for image_id in image_ids:
        exact[image_id] = image_id
        for key in set(_keys(image_id, number=True)):
            index[key] = None if key in index else image_id
    return index | exact


def _keys(name: str, number: bool) -> list[str | int]:
    """The names of an image, most exact first: id, file name, stem, number at its end."""
    path = Path(name)
    digits = re.search(r"(?<!\d)\d+$", path.stem)
    return [name, path.name, path.stem, *([int(digits[0])] if number and digits else [])]


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Where each row is, the image's name and the caption."""
    rows = {".json": _coco_results, ".jsonl": _json_lines, ".csv": _csv_rows}.get(path.suffix.lower())
    if rows is None:
        raise ValueError(f"{path} is not a file of captions: {EXPECTED}.")
    try:
        for where, row in rows(path):
            name = row.get("image_id", row.get("path")) if isinstance(row, dict) else None
            caption = row.get("caption") if isinstance(row, dict) else None
            if isinstance(name, bool) or not isinstance(name, str | int) or not isinstance(caption, str):
                raise ValueError(f"{path}, {where}: {str(row)[:80]}; {EXPECTED}.")
            yield where, str(name), caption
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}).") from error


def _coco_results(path: Path) -> Iterator[tuple[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        results = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise ValueError(f"{path}, line {line}: invalid JSON ({error}); {EXPECTED}.") from error
    if not isinstance(results, list):
        raise ValueError(f"{path} holds no list; {EXPECTED}.")
    yield from ((f"entry {number}", row) for number, row in enumerate(results, start=1))


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number}: invalid JSON ({error}); {EXPECTED}.") from error


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    # `showattend caption` writes the bytes of a file name that is not valid Unicode.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                if any(row.get(None, ())):
                    raise ValueError(f"{path}, line {reader.line_num}: more cells than columns: quote commas.")
                yield f"line {reader.line_num}", row
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}; {EXPECTED}.") from error
