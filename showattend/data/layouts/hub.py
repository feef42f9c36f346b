"""Whatever the library `datasets` loads, from the Hub or a folder."""

import re
from pathlib import Path

import datasets
from datasets.exceptions import DatasetsError

from ..problems import Problems
from ..splits import SPLIT_NAMES, random_splits
from .table import Table

CAPTION_COLUMNS = ("captions", "caption", "sentences")


def read(source: str, seed: int, problems: Problems, expected: str) -> Table:
    """Read a dataset with a row an image.

    Args:
        source: A folder or Hub id.
        seed: Of the split, if all rows are of one split that is not held out.
        expected: What a source must be, for error messages.
    """
    parts, rows = _load(source, expected)
    if "image" not in rows.column_names:
        raise ValueError(f"{source} has no column image, only {', '.join(rows.column_names)}; {expected}")
    try:
        rows = rows.cast_column("image", datasets.Image())
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{source}: the column image holds no images but {rows.features['image']}") from error

    positions = [(name, row) for name, part in parts.items() for row in range(len(part))]
    where = [f"{source}, {name}[{row}]" for name, row in positions]
    captions = []
    for place, texts in zip(where, _captions(rows, source), strict=True):
        captions.append([text.strip() for text in texts or [] if text and text.strip()])
        for number, text in enumerate(texts or [None]):
            if not text or not text.strip():
                problems.add("empty captions", place, f"caption {number} is empty")

    image_ids = _image_ids(rows, [f"{name}-{row:05}" for name, row in positions])
    names = [str(name) for name in rows["split"]] if "split" in rows.column_names else [name for name, _ in positions]
    splits: list[str | None]
    if len(set(names)) == 1 and SPLIT_NAMES.get(names[0]) not in ("validation", "test"):
        split_of = random_splits(image_ids, seed)
        splits = [split_of[image_id] for image_id in image_ids]
    else:
        splits = [SPLIT_NAMES.get(name) for name in names]

    rows = rows.select_columns(["image"]).add_column("image_id", image_ids).add_column("captions", captions)
    rows = rows.select_columns(["image_id", "image", "captions"])
    kept = []
    for index, split in enumerate(splits):
        if split is None:
            what = f"expected the split {', '.join(SPLIT_NAMES)}, got {names[index]!r}"
            problems.add("rows of unknown splits", where[index], what)
        elif captions[index]:
            kept.append(index)
    return Table(rows.select(kept), [str(splits[index]) for index in kept], [where[index] for index in kept])


def _load(source: str, expected: str) -> tuple[datasets.DatasetDict, datasets.Dataset]:
    """The splits, and all their rows in one dataset."""
    try:
        saved = any((Path(source) / name).is_file() for name in ("dataset_dict.json", "state.json"))
        parts = datasets.load_from_disk(source) if saved else datasets.load_dataset(source)
        if isinstance(parts, datasets.Dataset):
            parts = datasets.DatasetDict(train=parts)
        return parts, datasets.concatenate_datasets(list(parts.values()))
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"cannot load {source!r} with datasets ({reason}); {expected}") from error


def _captions(rows: datasets.Dataset, source: str) -> list[list[str | None] | None]:
    numbered = [name for name in rows.column_names if re.fullmatch(r"caption_?\d+", name)]
    if numbered:
        numbered.sort(key=lambda name: int(re.sub(r"\D", "", name)))
        return [list(texts) for texts in zip(*(rows[name] for name in numbered), strict=True)]
    for name in CAPTION_COLUMNS:
        feature = rows.features.get(name)
        if isinstance(feature, datasets.List | datasets.LargeList) and feature.feature == datasets.Value("string"):
            return list(rows[name])
    # A row a caption is refused as well: its images could not be kept apart when splitting.
    raise ValueError(
        f"{source} has no list of captions an image: expected a column {', '.join(CAPTION_COLUMNS)} that holds lists "
        f"of str, or the columns caption_0, caption_1, ...; got {', '.join(rows.column_names)}"
    )


def _image_ids(rows: datasets.Dataset, numbers: list[str]) -> list[str]:
    """The names that the dataset gives its images if they are unique, else numbers."""
    for column in ("image_id", "filename", "image"):
        if column == "image":
            images = rows.select_columns("image").cast_column("image", datasets.Image(decode=False))
            paths = ((row["image"] or {}).get("path") for row in images)
            names = [path and Path(path).name for path in paths]
        elif column in rows.column_names:
            names = list(rows[column])
        else:
            continue
        if None not in names and len(set(names)) == len(names):
            return [str(name) for name in names]
    return numbers
