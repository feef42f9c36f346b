"""Karpathy's splits: one JSON file with each image's captions and split."""

import json
from pathlib import Path

from ..problems import Problems
from ..splits import SPLIT_NAMES, Listing
from .table import Caption

FILE = "dataset_flickr8k.json"


def read(path: Path, problems: Problems) -> tuple[list[Caption], list[Listing]]:
    """Captions and splits; an image's row is its place in the file, 1 being the first."""
    try:
        images = list(json.loads(path.read_bytes().decode("utf-8-sig"))["images"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be JSON, an object with a list `images` ({error!r})") from error
    captions: list[Caption] = []
    listings: list[Listing] = []
    for row, image in enumerate(images, start=1):
        where = f"{path.name}, row {row}"
        try:
            image_id = image["filename"].strip()
            split = SPLIT_NAMES[image["split"]]
            texts = [sentence["raw"].strip() for sentence in image["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            problems.add("malformed rows", where, f"expected filename, split and sentences ({error!r})")
        else:
            listings.append(Listing(where, split, image_id))
            captions += [Caption(row, image_id, text) for text in texts]
    return captions, listings
