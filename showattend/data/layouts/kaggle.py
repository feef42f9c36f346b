"""Kaggle's layout of Flickr8k: `captions.txt`, CSV with a row a caption."""

import csv
from collections.abc import Iterator
from pathlib import Path

from ..problems import Problems
from .table import Caption
from .text import lines

FILE = "captions.txt"


def read(path: Path, problems: Problems) -> Iterator[Caption]:
    numbered = lines(path, problems)
    row, header = next(numbered, (1, ""))
    if [column.strip().lower() for column in next(csv.reader([header]), [])] != ["image", "caption"]:
        raise ValueError(f"{path}, row {row}: expected the header image,caption, got {header[:80]!r}")
    for row, line in numbered:
        try:
            # Line by line and strict: a stray quote must not swallow the rows below it.
            image_id, text = next(csv.reader([line], strict=True))
        except (csv.Error, ValueError):
            problems.add("malformed rows", f"{path.name}, row {row}", f"expected image,caption, got {line[:80]!r}")
        else:
            yield Caption(row, image_id.strip(), text.strip())
