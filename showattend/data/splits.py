"""Assigns images to splits."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .problems import Problems, log
from .rows import CaptionedImage, place

# Held-out splits come first, so that an image listed twice is not trained on.
SPLITS = ("test", "validation", "train")
SPLIT_NAMES = {"restval": "train", "val": "validation", "valid": "validation", "dev": "validation"} | {
    split: split for split in SPLITS
}
Splits = dict[str, list[CaptionedImage]]


class Listing(NamedTuple):
    """An image's line in a list of a split's images."""

    where: str
    split: str
    image_id: str


def split_images(images: Sequence[CaptionedImage], listings: Sequence[Listing], problems: Problems) -> Splits:
    """Official splits if there are any, else random ones."""
    if all(image.splits.keys() == {None} for image in images) and listings:
        return _listed_splits(images, listings, problems)
    names = {split for image in images for split in image.splits}
    if len(names) > 1 or any(standard_split(name) in ("test", "validation") for name in names):
        return _own_splits(images, problems)
    return _random_splits(images)


def standard_split(name: str | None) -> str | None:
    """`train`, `validation` or `test`, or None for an unknown name."""
    return SPLIT_NAMES.get(str(name).strip().lower())


def _own_splits(images: Iterable[CaptionedImage], problems: Problems) -> Splits:
    """The splits that the images' rows name, in the order of the rows."""
    splits: Splits = {split: [] for split in SPLITS}
    for image in images:
        places: dict[str, str] = {}
        for name, where in image.splits.items():
            if split := standard_split(name):
                places.setdefault(split, place(*where))
            else:
                what = f"expected the split {', '.join(SPLIT_NAMES)}, got {name!r}"
                problems.add("rows of unknown splits", place(*where), what)
        if not places:
            continue
        first, *others = sorted(places, key=SPLITS.index)
        for split in others:
            problems.add("images listed twice", places[split], f"{image.image_id!r} is already listed in {first}")
        splits[first].append(image)
    return splits


def _listed_splits(images: Sequence[CaptionedImage], listings: Iterable[Listing], problems: Problems) -> Splits:
    """The splits of split files, in their order."""
    captioned = {image.image_id: image for image in images}
    split_of: dict[str, str] = {}
    splits: Splits = {split: [] for split in SPLITS}
    for where, split, image_id in listings:
        if image_id in split_of:
            problems.add("images listed twice", where, f"{image_id!r} is already listed in {split_of[image_id]}")
        elif image_id not in captioned:
            problems.add("listed images without captions", where, f"{image_id!r} has no caption")
        else:
            split_of[image_id] = split
            splits[split].append(captioned[image_id])
    if unlisted := len(images) - len(split_of):
        file = images[0].places[0][0]
        log(logging.WARNING, f"{file}: {unlisted:,} images are in none of the split files and are left out")
    return splits


def _random_splits(images: Iterable[CaptionedImage]) -> Splits:
    """A split by image, 75 / 12.5 / 12.5 % as in Flickr8k.

    Images are ordered by a hash of their id: unlike with a shuffle, adding or removing an image moves hardly any other.
    """
    # A fixed seed, so that no command scores images that another has trained on.
    ordered = sorted(images, key=lambda image: hashlib.sha256(f"42 {image.image_id}".encode()).digest())
    held_out = round(len(ordered) / 8)
    return {
        "test": ordered[:held_out],
        "validation": ordered[held_out : 2 * held_out],
        "train": ordered[2 * held_out :],
    }
