"""Flickr8k's original layout: `Flickr8k.token.txt`, and a list of images for each split."""

import re
from collections.abc import Iterator
from pathlib import Path

from ..problems import Problems
from ..splits import Listing
from .table import Caption
from .text import lines

FILE = "Flickr8k.token.txt"
SPLIT_FILES = {
    "test": "Flickr_8k.testImages.txt",
    "validation": "Flickr_8k.devImages.txt",
    "train": "Flickr_8k.trainImages.txt",
}


def read(path: Path, problems: Problems) -> Iterator[Caption]:
    for row, line in lines(path, problems):
        if match := re.fullmatch(r"([^\t]*)#\d+\t(.*)", line):
            yield Caption(row, match[1].strip(), match[2].strip())
        else:
            what = f"expected NAME.jpg#N<TAB>caption, got {line[:80]!r}"
            problems.add("malformed rows", f"{path.name}, row {row}", what)


def read_split_files(folder: Path, problems: Problems) -> list[Listing] | None:
    """The images of each split, or None if the folder has no split file."""
    files = {split: folder / name for split, name in SPLIT_FILES.items() if (folder / name).is_file()}
    return (
        [
            Listing(f"{path.name}, row {row}", split, line.strip())
            for split, path in files.items()
            for row, line in lines(path, problems)
        ]
        if files
        else None
    )
