"""The rows that every layout is read into, and the images that they form."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import NamedTuple

import datasets

from .problems import Problems

FEATURES = datasets.Features(
    image_id=datasets.Value("string"), image=datasets.Image(), captions=datasets.List(datasets.Value("string"))
)


class Row(NamedTuple):
    """A row of a file: an image and all its captions, or one of them."""

    file: str  # its name in reports; a name that ends in [] takes an index inside the brackets
    number: int
    name: str  # the image's file name, if it has one
    image: str | int  # identifies the image: the path of its file, or its index in a dataset
    captions: Sequence[str]
    split: str | None = None  # as in the file


@dataclass(slots=True)
class CaptionedImage:
    """An image with the captions of all its rows."""

    image_id: str
    image: str | int
    captions: list[str] = field(default_factory=list)
    places: list[tuple[str, int]] = field(default_factory=list)  # file and row of each caption
    splits: dict[str | None, tuple[str, int]] = field(default_factory=dict)  # the first place in each split

    @property
    def where(self) -> str:
        """Files and rows, for reports."""
        rows: dict[str, dict[int, None]] = {}
        for file, number in self.places:
            rows.setdefault(file, {})[number] = None
        return "; ".join(place(file, *numbers) for file, numbers in rows.items())


def place(file: str, *numbers: int) -> str:
    """`captions.txt, rows 8, 10` or, for a list in a file, `annotations[7], annotations[9]`."""
    if file.endswith("[]"):
        return ", ".join(f"{file[:-1]}{number}]" for number in numbers)
    return f"{file}, row{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def group_by_image(rows: Iterable[Row], problems: Problems) -> list[CaptionedImage]:
    """Merge rows into images that have a caption; images and captions keep their order.

    `image_id` is the file's name, with its folders if several images share the name.
    """
    images: dict[str | int, CaptionedImage] = {}
    for row in rows:
        where = (row.file, row.number)
        if not row.name:
            problems.add("malformed rows", place(*where), "no image is named")
            continue
        if not all(map(_is_unicode, (row.name, *row.captions))):
            problems.add("malformed rows", place(*where), f"half a surrogate pair, which is not text, in {row.name!r}")
            continue
        if not row.captions:
            problems.add("listed images without captions", place(*where), f"{row.name!r} has no caption")
        captions = [caption.strip() for caption in row.captions if has_words(caption)]
        for _ in range(len(row.captions) - len(captions)):
            problems.add("empty captions", place(*where), "the caption is empty")
        if captions:
            image = images.setdefault(row.image, CaptionedImage(row.name, row.image))
            image.captions += captions
            image.places += [where] * len(captions)
            image.splits.setdefault(row.split, where)
    _shorten_names(list(images.values()))
    return list(images.values())


def has_words(caption: str) -> bool:
    """Whether there is a letter or a digit: no metric can score an image whose captions are punctuation."""
    return any(map(str.isalnum, caption))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shorten_names(images: Sequence[CaptionedImage]) -> None:
    names = [image.image_id.rpartition("/")[2] for image in images]
    counts = Counter(names)
    paths = [image.image for image in images if isinstance(image.image, str)]
    root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""  # noqa: PTH120
    for image, name in zip(images, names, strict=True):
        if counts[name] == 1:
            image.image_id = name
        elif isinstance(image.image, str):
            image.image_id = PurePath(image.image).relative_to(root).as_posix()
