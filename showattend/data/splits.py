"""Which split an image belongs to."""

import hashlib
from collections.abc import Collection, Iterable
from typing import NamedTuple

from .problems import Problems

# Held-out splits come first: an image that is listed twice must not be trained on.
SPLITS = ("test", "validation", "train")
SPLIT_NAMES = {"restval": "train", "val": "validation", "valid": "validation", "dev": "validation"} | {
    split: split for split in SPLITS
}


class Listing(NamedTuple):
    """An image's line in a list of a split's images."""

    where: str
    split: str
    image_id: str


def official_splits(listings: Iterable[Listing], captioned: Collection[str], problems: Problems) -> dict[str, str]:
    """The split of each captioned image that is listed, in the order of the listings, held-out splits first.

    Args:
        captioned: The ids of all images with a caption.
    """
    split_of: dict[str, str] = {}
    for where, split, image_id in sorted(listings, key=lambda listing: SPLITS.index(listing.split)):
        if image_id in split_of:
            problems.add("images listed twice", where, f"{image_id!r} is listed before, in {split_of[image_id]}")
        elif image_id not in captioned:
            problems.add("listed images without captions", where, f"{image_id!r} has no caption")
        else:
            split_of[image_id] = split
    return split_of


def random_splits(image_ids: Iterable[str], seed: int) -> dict[str, str]:
    """A split by image, 75 / 12.5 / 12.5 % as in Flickr8k.

    Images are ordered by a hash of seed and id: unlike after a shuffle, an image more or less moves hardly any other.
    """
    ordered = sorted(image_ids, key=lambda image_id: hashlib.sha256(f"{seed} {image_id}".encode()).digest())
    held_out = round(len(ordered) / 8)
    return {
        image_id: "test" if rank < held_out else "validation" if rank < 2 * held_out else "train"
        for rank, image_id in enumerate(ordered)
    }
