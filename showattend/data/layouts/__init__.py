"""The supported layouts of captions and images, one module each."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import datasets

from ..images import check_column
from ..problems import Problems
from ..rows import Row
from ..splits import Listing
from . import coco, hub, karpathy, table, token_file
from .recognise import KAGGLE_FILE, KARPATHY_FILE, ListFile, describe, find_lists, has_data_files, recognise

EXPECTED = (
    f"expected a folder with {KAGGLE_FILE} (the lines `image,caption`, `a.jpg,A dog runs.`, and Images/a.jpg), "
    f"metadata.jsonl, {token_file.FILE} (`a.jpg#0<TAB>A dog runs.`), Karpathy's {KARPATHY_FILE} or the like, "
    "COCO's annotations, Parquet files or "
    "WebDataset tars, or the id of a dataset on the Hub; docs/data.md shows them all"
)


class Source(NamedTuple):
    """What a dataset's files hold."""

    rows: Iterable[Row]
    listings: Sequence[Listing] = ()  # the images of each split, where they have files of their own
    images: datasets.Dataset | None = None  # undecoded; None if rows name files
    faults: Sequence[str] = ()  # of `images`


def read_source(source: str | Path, names: table.Names, problems: Problems) -> Source:
    """Recognise a source's layout and read it.

    Raises:
        ValueError: If no layout fits.
        OSError: If `datasets` cannot load `source`.
    """
    path = Path(source).expanduser().absolute()
    if path.is_file():
        found = recognise(path, path.parent, names)
        if found is None:
            raise ValueError(f"{source} is a file; {EXPECTED}")
        return _read_lists([found], path.parent, names, problems)
    if path.is_dir() and not hub.is_saved(path):
        if lists := find_lists(path, names):
            return _read_lists(lists, path, names, problems)
        if not has_data_files(path):
            raise FileNotFoundError(f"{source} holds no list of captions, only {describe(path)}; {EXPECTED}")
    name = str(path if path.is_dir() else source)
    loaded = hub.load(name, names, EXPECTED)
    if loaded.holds_paths:
        return Source(hub.read(name, loaded, (), problems))
    faults, digests = check_column(loaded.images)
    return Source(hub.read(name, loaded, digests, problems), (), loaded.images, faults)


def _read_lists(files: Sequence[ListFile], folder: Path, names: table.Names, problems: Problems) -> Source:
    kind = files[0].kind
    if kind != "table" and any(names):
        raise ValueError(f"{files[0].path} has no columns: leave `image_column` and `caption_column` out")
    rows = chain.from_iterable(_rows(file, names, problems) for file in files)
    return Source(rows, token_file.read_split_files(files[0].path.parent, problems))


def _rows(file: ListFile, names: table.Names, problems: Problems) -> Iterator[Row]:
    if file.kind == "table":
        return table.read(file.path, file.label, names, file.split, problems)
    if file.kind == "coco":
        return coco.read(file.path, file.split, problems)
    return (karpathy if file.kind == "karpathy" else token_file).read(file.path, problems)
