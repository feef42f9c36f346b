"""Loads captions and their images from any known layout into a `datasets.DatasetDict`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from .images import NOT_FOUND, file_faults
from .layouts import read_source
from .problems import Problems
from .rows import FEATURES, group_by_image
from .splits import Splits, split_images


def load_captions(
    source: str | Path,
    *,
    max_train_samples: int | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> datasets.DatasetDict:
    """Loads an image captioning dataset; a row is an image with all its captions.

    Rows of one image (same file, same bytes or same id) are merged before splitting, so that no image is in two splits.
    Official splits are used where there are any (`Flickr_8k.{train,dev,test}Images.txt`, Karpathy's, the dataset's
    own), and then only those; else the images' names decide, 75 / 12.5 / 12.5 % as in Flickr8k. Whatever is wrong in
    the files (a malformed row, a caption without an image, a truncated image) is reported with its file and row,
    counted, and left out.

    Args:
        source: A folder, a file in it that lists the captions, or a Hub id; docs/data.md shows every layout.
        max_train_samples: Keep only this many train images, the first ones.
        image_column: The column that holds images or names their files, if it has none of the usual names.
        caption_column: The column that holds a caption or a list of captions, if it has none of the usual names.

    Returns:
        The splits that are not empty, out of `train`, `validation` and `test`, with the columns `image_id` (str, the
        image's file name if it has one, unique), `image` (`datasets.Image`, decoded when read) and `captions` (list
        of str).

    Raises:
        ValueError: If no layout fits `source`, or no image with a caption is left.
        OSError: If `datasets` cannot load `source`.
    """
    if max_train_samples is not None and max_train_samples < 1:
        raise ValueError(f"max_train_samples must be at least 1, got {max_train_samples}")
    problems = Problems()
    found = read_source(source, (image_column, caption_column), problems)
    splits = split_images(group_by_image(found.rows, problems), found.listings, problems)
    splits = _readable(splits, found.faults, problems)
    splits["train"] = splits["train"][:max_train_samples]
    splits = {split: splits[split] for split in ("train", "validation", "test") if splits[split]}
    problems.report(source, splits)
    if not splits:
        why = problems.summary().replace(";", ",") or "no rows"
        raise ValueError(f"{source} has no readable image with a caption ({why})")
    return _to_dataset(splits, found.images)


def load_split(
    source: str | Path, split: str, image_column: str | None = None, caption_column: str | None = None
) -> datasets.Dataset:
    """The images of one split, with their captions; ValueError if there is no such split."""
    splits = load_captions(source, image_column=image_column, caption_column=caption_column)
    if split not in splits:
        raise ValueError(f"{source} has no {split} split: it has {', '.join(splits)}.")
    return splits[split]


def _readable(splits: Splits, faults: Sequence[str], problems: Problems) -> Splits:
    """The images that can be decoded; the others are reported."""
    images = [image for split in splits.values() for image in split]
    of_files = iter(file_faults(str(image.image) for image in images if isinstance(image.image, str)))
    fault_of: dict[str, str] = {}
    for image in images:
        fault = next(of_files) if isinstance(image.image, str) else faults[image.image]
        fault_of[image.image_id] = fault
        if fault:
            kind = "missing images" if fault == NOT_FOUND else "broken images"
            problems.add(kind, image.where, f"image {image.image_id!r}: {fault}")
    return {split: [image for image in some if not fault_of[image.image_id]] for split, some in splits.items()}


def _to_dataset(splits: Splits, images: datasets.Dataset | None) -> datasets.DatasetDict:
    if images is None:
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_dict(
                    {name: [getattr(image, name) for image in some] for name in FEATURES}, FEATURES
                )
                for split, some in splits.items()
            }
        )
    # Add columns before selecting rows: the other way round copies all images.
    columns: dict[str, list[Any]] = {"image_id": [""] * len(images), "captions": [[]] * len(images)}
    for image in (image for some in splits.values() for image in some):
        columns["image_id"][int(image.image)] = image.image_id
        columns["captions"][int(image.image)] = image.captions
    for name, cells in columns.items():
        images = images.add_column(name, cells, feature=FEATURES[name])
    images = images.select_columns(list(FEATURES)).cast_column("image", FEATURES["image"])
    return datasets.DatasetDict(
        {split: images.select([int(image.image) for image in some]) for split, some in splits.items()}
    )
