"""Flickr8k's and Flickr30k's original files: rows `NAME.jpg#N<TAB>caption`; and Flickr8k's split files."""

import re
from collections.abc import Iterator
from pathlib import Path

from ..problems import Problems
from ..rows import Row, place
from ..splits import Listing
from .image_files import ImageFiles
from .text import lines

FILE = "Flickr8k.token.txt"
ROW = re.compile(r"([^\t]*)#\d+\t(.*)")
SPLIT_FILES = {
    "test": "Flickr_8k.testImages.txt",
    "validation": "Flickr_8k.devImages.txt",
    "train": "Flickr_8k.trainImages.txt",
}


def read(path: Path, problems: Problems) -> Iterator[Row]:
    files = ImageFiles(path.parent)
    for number, line in lines(path, problems):
        if match := ROW.fullmatch(line):
            name = match[1].strip()
            yield Row(path.name, number, name, files.find(name), [match[2].strip()])
        else:
            what = f"expected NAME.jpg#N<TAB>caption, got {line[:80]!r}"
            problems.add("malformed rows", place(path.name, number), what)


def read_split_files(folder: Path, problems: Problems) -> list[Listing]:
    """The images of each split, held-out splits first; empty if the folder has no split file."""
    return [
        Listing(place(name, number), split, line.strip())
        for split, name in SPLIT_FILES.items()
        if (folder / name).is_file()
        for number, line in lines(folder / name, problems)
    ]
