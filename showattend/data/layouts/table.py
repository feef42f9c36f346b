"""What every layout is read into."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from ..problems import Problems

FEATURES = datasets.Features(
    image_id=datasets.Value("string"), image=datasets.Image(), captions=datasets.List(datasets.Value("string"))
)


class Table(NamedTuple):
    """All images with at least one caption; the three run in parallel."""

    rows: datasets.Dataset  # image_id, image, captions
    splits: list[str]
    where: list[str]  # the file and rows that an image was read from, for reports


class Caption(NamedTuple):
    """A caption in a text file."""

    row: int  # as an editor counts: 1 is the first line, headers included
    image_id: str
    text: str


def group_by_image(captions: Iterable[Caption], file: str, problems: Problems) -> dict[str, list[Caption]]:
    """The captions of each image; those without an image or a text are reported and left out."""
    captions_of: dict[str, list[Caption]] = {}
    for caption in captions:
        if not caption.image_id:
            problems.add("malformed rows", f"{file}, row {caption.row}", "no image is named")
        elif not caption.text:
            problems.add("empty captions", f"{file}, row {caption.row}", "the caption is empty")
        else:
            captions_of.setdefault(caption.image_id, []).append(caption)
    return captions_of


def make_table(
    file: str, captions_of: dict[str, list[Caption]], split_of: dict[str, str], image_folders: Sequence[Path]
) -> Table:
    """A table in the order of `split_of`, whose images lie in the first of `image_folders` that has them."""
    columns: dict[str, list[Any]] = {"image_id": list(split_of), "image": [], "captions": []}
    where = []
    for image_id in split_of:
        paths = (str(folder / image_id) for folder in image_folders)
        columns["image"].append(next(filter(os.path.isfile, paths), None))
        columns["captions"].append([caption.text for caption in captions_of[image_id]])
        numbers = list(dict.fromkeys(str(caption.row) for caption in captions_of[image_id]))
        where.append(f"{file}, row{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}")
    return Table(datasets.Dataset.from_dict(columns, FEATURES), list(split_of.values()), where)
