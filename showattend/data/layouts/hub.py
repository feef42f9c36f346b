"""Everything that `datasets` loads, from the Hub or a folder: Parquet, WebDataset, saved datasets."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tarfile import TarError
from typing import Any, NamedTuple
from zipfile import BadZipFile

import datasets
from datasets.exceptions import DatasetsError

from ..images import image_name
from ..problems import Problems
from ..rows import Row, has_words, place
from .columns import IMAGE_COLUMNS, TEXT_KEYS, Columns, find_captions, find_column, texts_of
from .image_files import ImageFiles

# Columns that identify a row's image; numbers in them count within a split.
ID_COLUMNS = ("image_id", "img_id", "imgid", "cocoid", "filename", "file_name")
NO_CAPTION_COLUMNS = (*ID_COLUMNS, "id", "split", "url", "__key__", "__url__")
# What the readers of its formats raise on damaged or foreign files.
LOAD_ERRORS = (
    *(OSError, ValueError, RuntimeError, LookupError, TypeError, EOFError),
    *(DatasetsError, TarError, BadZipFile),
)


class Table(NamedTuple):
    """The rows of all splits; `positions` says which row of which split each one is."""

    images: datasets.Dataset  # image: undecoded, or the paths of files
    others: datasets.Dataset  # all other columns
    columns: Columns
    positions: list[tuple[str, int]]

    @property
    def holds_paths(self) -> bool:
        """Whether the images are files that the dataset names."""
        return self.images.features["image"] == datasets.Value("string")


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def load(source: str, names: tuple[str | None, str | None], expected: str) -> Table:
    """Load a dataset and find its columns.

    Raises:
        OSError: If `datasets` cannot load it; `expected` says what it can.
        ValueError: If there is no column of images or of captions.
    """
    try:
        parts = datasets.load_from_disk(source) if is_saved(Path(source)) else datasets.load_dataset(source)
        if isinstance(parts, datasets.Dataset):
            parts = datasets.DatasetDict(train=parts)
        rows = datasets.concatenate_datasets(list(parts.values()))
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"cannot load {source!r} with datasets ({reason}); {expected}") from error
    columns = columns_of(source, rows.features, names)
    images = rows.select_columns([columns.image])
    try:
        if images.features[columns.image] != datasets.Value("string"):
            images = images.cast_column(columns.image, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        held = rows.features[columns.image]
        raise ValueError(f"{source}: the column {columns.image} holds {held}, not images") from error
    if columns.image != "image":
        images = images.rename_column(columns.image, "image")
    positions = [(name, row) for name, part in parts.items() for row in range(len(part))]
    return Table(images, rows.remove_columns(columns.image), columns, positions)


def read(source: str, table: Table, digests: Sequence[str], problems: Problems) -> Iterator[Row]:
    """Rows by image, whose `image` is the index of the first row that shows it, or the path of a file."""
    names = [name for name, _ in table.positions]
    splits = list(table.others[table.columns.split]) if table.columns.split else names
    if table.holds_paths:
        files = ImageFiles(Path(source)) if Path(source).is_dir() else None
        image_names = [name or "" for name in table.images["image"]]
        images: list[Any] = [files.find(name) if files and name else name for name in image_names]
    else:
        images = _first_rows(table, digests)
        image_names = _names(table, images)
    cells = table.others.select_columns(table.columns.captions)
    for index, row in enumerate(cells):
        file, number = f"{source}, {names[index]}[]", table.positions[index][1]
        captions = [text for column in table.columns.captions for text in texts_of(row[column])] or [None]
        for place_in_row, text in enumerate(captions):
            if not text or not has_words(text):
                problems.add("empty captions", place(file, number), f"caption {place_in_row} is empty")
        if kept := [text for text in captions if text and has_words(text)]:
            yield Row(file, number, image_names[index], images[index], kept, splits[index])


def columns_of(source: str, features: datasets.Features, names: tuple[str | None, str | None]) -> Columns:
    """The columns with images and captions, by their types and the usual names; ValueError unless one fits."""
    image_column, caption_column = names
    of_images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    image = find_column(features, IMAGE_COLUMNS, image_column)
    if image_column is None and of_images and image not in of_images:
        image = find_column(of_images, IMAGE_COLUMNS, None) or (of_images[0] if len(of_images) == 1 else None)
    if image is None:
        raise ValueError(
            f"{source} has no column {image_column or 'image'}, only {', '.join(features)}: "
            "name the column of images with `image_column`"
        )
    of_texts = [name for name, feature in features.items() if name != image and _holds_texts(feature)]
    captions = find_captions(of_texts, caption_column)
    if not captions and caption_column is None:
        captions = [name for name in of_texts if name not in NO_CAPTION_COLUMNS]
    if (len(captions) != 1 and not all(find_captions([name], None) for name in captions)) or not captions:
        raise ValueError(
            f"{source} has no column {caption_column or 'of captions'}, only {', '.join(features)}: "
            "name the column of texts, or of lists of texts, with `caption_column`"
        )
    return Columns(image, captions, find_column(features, ("split",), None))


def _holds_texts(feature: Any) -> bool:
    if isinstance(feature, dict):
        return any(_holds_texts(feature[key]) for key in TEXT_KEYS if key in feature)
    if isinstance(feature, datasets.List | datasets.LargeList):
        return _holds_texts(feature.feature)
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _first_rows(table: Table, digests: Sequence[str]) -> list[int]:
    """For each row, the first row that shows the same image.

    Rows of one split with the same id show the same image. In different splits their bytes must match as well, because
    ids may restart in each split. Without ids, rows with the same bytes show the same image.
    """
    first: dict[Any, int] = {}
    parent = list(range(len(digests)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    column = find_column(table.others.column_names, ID_COLUMNS, None)
    ids = table.others[column] if column else [None] * len(digests)
    for index, (digest, image_id) in enumerate(zip(digests, ids, strict=True)):
        split = table.positions[index][0]
        for key in [digest] if image_id is None else [(image_id, digest), (image_id, split, None)]:
            if key:
                one, other = sorted((root(index), root(first.setdefault(key, index))))
                parent[other] = one
    return [root(index) for index in range(len(digests))]


def _names(table: Table, images: Sequence[int]) -> list[str]:
    """A name for each row: the dataset's own name of the image if names are unique, else the row's number."""
    firsts = sorted(set(images))
    for column in (*ID_COLUMNS, "image"):
        if column == "image":
            names = [image_name(source) for source in table.images["image"]]
        elif column in table.others.column_names:
            names = list(table.others[column])
        else:
            continue
        of_images = [names[index] for index in firsts]
        if None not in of_images and len(set(of_images)) == len(firsts):
            return [str(names[index]) for index in images]
    return [f"{split}-{row:05}" for split, row in (table.positions[index] for index in images)]
