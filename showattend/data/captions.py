"""Captions and their images, from any known layout to a `datasets.DatasetDict`.

Whatever is wrong in the files (a malformed row, a caption without an image, a truncated image) is reported with its
file and row, counted, and left out; everything else is kept.
"""

from pathlib import Path

import datasets

from .images import NOT_FOUND, image_faults
from .layouts import Table, read_source
from .problems import Problems


def load_captions(source: str | Path, *, max_train_samples: int | None = None, seed: int = 42) -> datasets.DatasetDict:
    """Loads an image captioning dataset; a row is an image with all its captions.

    Args:
        source: A folder in Kaggle's layout (`captions.txt`), the original one (`Flickr8k.token.txt`) or Karpathy's
            (`dataset_flickr8k.json`), with the images in `Images/`, `images/`, `Flicker8k_Dataset/`,
            `Flickr8k_Dataset/` or the folder itself; or a folder or Hub id that `datasets` loads, with an `image`
            column and captions in one list column (`captions`, `caption` or `sentences`) or in `caption_0`, ...
        max_train_samples: Keep only the first so many train images.
        seed: Of the split by image, 75 / 12.5 / 12.5 % as in Flickr8k. Official splits are used where there are any
            (`Flickr_8k.{train,dev,test}Images.txt`, Karpathy's, the dataset's own), and then only those.

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
    table = read_source(source, seed, problems)
    indices: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for index in _readable(table, problems):
        indices[table.splits[index]].append(index)
    indices["train"] = indices["train"][:max_train_samples]
    dataset = datasets.DatasetDict({split: table.rows.select(chosen) for split, chosen in indices.items() if chosen})
    problems.report(source, dataset)
    if not dataset:
        why = problems.summary().replace(";", ",") or "no rows"
        raise ValueError(f"{source} has no image with both a caption and a readable photo ({why})")
    return dataset


def _readable(table: Table, problems: Problems) -> list[int]:
    """The rows whose image can be decoded; the others are reported."""
    readable = []
    rows = zip(table.rows["image_id"], table.where, image_faults(table.rows), strict=True)
    for index, (image_id, where, fault) in enumerate(rows):
        if not fault:
            readable.append(index)
        else:
            kind = "missing photos" if fault == NOT_FOUND else "broken photos"
            problems.add(kind, where, f"photo {image_id!r}: {fault}")
    return readable
