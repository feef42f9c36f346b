"""Finds the files of a folder that list captions, and their layout, by their content."""

import mmap
import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ..splits import SPLIT_NAMES
from . import coco, table, token_file
from .image_files import is_folder
from .text import first_line

Kind = Literal["karpathy", "table", "token_file", "coco"]  # in order of preference, if a folder has several
KAGGLE_FILE = "captions.txt"
KARPATHY_FILE = "dataset_flickr8k.json"
NAMES: dict[str, Kind] = {  # read even if their content looks wrong, so that an error says what is wrong
    KAGGLE_FILE: "table",
    "metadata.csv": "table",
    "metadata.jsonl": "table",
    token_file.FILE: "token_file",
    KARPATHY_FILE: "karpathy",
}
SUFFIXES = (".json", ".token", *table.CSV_SUFFIXES, *table.JSON_LINES_SUFFIXES)
SPLIT = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_NAMES)})(?![a-z])")
DATA_SUFFIXES = (".parquet", ".arrow", ".tar", ".zip", ".gz", ".zst")  # left to the library datasets
MAX_DEPTH = 2


class ListFile(NamedTuple):
    """A file that lists captions."""

    path: Path
    label: str  # its path in the folder, or its name, for reports
    kind: Kind
    split: str | None  # as the file's or its folder's name says

    @property
    def dataset(self) -> tuple[str, str]:
        """Kind, and name without the split; the same for all files of a dataset."""
        return self.kind, self.path.name if self.path.stem == "metadata" else SPLIT.sub("*", self.label)


def find_lists(folder: Path, names: table.Names) -> list[ListFile]:
    """The files of a folder's dataset; of several datasets, the one nearest to the top.

    Raises:
        ValueError: If it holds several datasets of one kind.
    """
    level = [folder]
    for _ in range(MAX_DEPTH + 1):
        entries = [entry for directory in level for entry in os.scandir(directory) if entry.name[0] != "."]
        files = sorted(Path(entry.path) for entry in entries if entry.name.lower().endswith(SUFFIXES))
        found = [found for path in files if (found := recognise(path, folder, names))]
        if found:
            return _one_dataset(folder, found)
        level = [Path(entry.path) for entry in entries if is_folder(entry)]
    return []


def recognise(path: Path, folder: Path, names: table.Names) -> ListFile | None:
    """A file's layout, or None if it lists no captions."""
    label = path.relative_to(folder).as_posix()
    kind = path.is_file() and (NAMES.get(path.name) or _kind(path, names))  # a pipe's reader would wait forever
    if not kind:
        return None
    split = SPLIT.search(label.lower())
    return ListFile(path, label if path.stem == "metadata" else path.name, kind, split[1] if split else None)


def has_data_files(folder: Path) -> bool:
    """Whether there is anything that `datasets` may load."""
    return any(path.suffix in DATA_SUFFIXES for path in _files(folder, MAX_DEPTH))


def describe(folder: Path) -> str:
    """What is in a folder, for errors: `12 .jpg, 1 .xml`."""
    counts = Counter(path.suffix or path.name for path in _files(folder, MAX_DEPTH))
    return ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common(6)) or "no files"


def _files(folder: Path, depth: int) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.is_dir() and depth and entry.name[0] != ".":
            yield from _files(entry, depth - 1)
        elif entry.is_file():
            yield entry


def _kind(path: Path, names: table.Names) -> Kind | None:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _json_kind(path, names)
    if suffix in (".txt", ".token") and token_file.ROW.fullmatch(first_line(path)):
        return "token_file"
    return "table" if suffix in SUFFIXES and table.columns_of(path, names) else None


def _json_kind(path: Path, names: table.Names) -> Kind | None:
    if not path.stat().st_size:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            return "table" if table.columns_of(path, names) else None
        if content.find(b'"images"') < 0:
            return None
        if content.find(b'"sentences"') >= 0:
            return "karpathy"
        # COCO's other annotations, of objects and of keypoints, have no captions.
        return "coco" if content.find(b'"annotations"') >= 0 and content.find(b'"caption"') >= 0 else None


def _one_dataset(folder: Path, found: list[ListFile]) -> list[ListFile]:
    kind = min((file.kind for file in found), key=get_args(Kind).index)
    found = [file for file in found if file.kind == kind]
    if known := [file for file in found if file.path.name in NAMES]:
        found = known
    if kind == "coco":  # of 2014 and 2017, the year whose images are there
        found = [file for file in found if coco.has_images(file.path)] or found
    datasets = [list(files) for _, files in groupby(sorted(found, key=lambda file: file.dataset), lambda f: f.dataset)]
    if len(datasets) > 1:
        names = ", ".join(files[0].path.name for files in datasets)
        raise ValueError(f"{folder} holds several lists of captions: {names}; give the path of one of them")
    return datasets[0]
