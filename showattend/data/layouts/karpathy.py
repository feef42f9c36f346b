"""Karpathy's splits of Flickr8k, Flickr30k and COCO: one JSON file with each image's captions and split."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..problems import Problems
from ..rows import Row, place
from ..splits import SPLIT_NAMES
from .image_files import ImageFiles


def read(path: Path, problems: Problems) -> Iterator[Row]:
    """Rows; their number is the image's position in the file, from 1."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=_without_tokens)
        images = list(content["images"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON, an object with a list `images` ({error!r})") from error
    files = ImageFiles(path.parent)
    for number, image in enumerate(images, start=1):
        try:
            name = image["filename"].strip()
            split = SPLIT_NAMES[image["split"]]
            captions = [sentence["raw"].strip() for sentence in image["sentences"]]
            folder = image.get("filepath")
            names = [f"{folder}/{name}", name] if folder else [name]
        except (KeyError, TypeError, AttributeError) as error:
            what = f"expected filename, split and sentences ({error!r})"
            problems.add("malformed rows", place(path.name, number), what)
        else:
            yield Row(path.name, number, name, files.find(*names), captions, split)


def _without_tokens(item: dict[str, Any]) -> dict[str, Any]:
    item.pop("tokens", None)  # a list for each of COCO's 600,000 captions takes half a gigabyte
    return item
