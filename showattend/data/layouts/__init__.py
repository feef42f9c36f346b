"""The layouts in which captions and their images are read, one file each."""

import logging
from pathlib import Path

from ..problems import Problems, log
from ..splits import Listing, official_splits, random_splits
from . import flickr8k, hub, kaggle, karpathy
from .table import Table, group_by_image, make_table

IMAGE_FOLDERS = ("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", ".")
EXPECTED = (
    f"expected a folder with {kaggle.FILE} (Kaggle's layout), {flickr8k.FILE} (the original layout) or {karpathy.FILE} "
    "(Karpathy's splits) and the photos, or a folder or Hub id that datasets can load"
)


def read_source(source: str | Path, seed: int, problems: Problems) -> Table:
    """Recognise a source's layout and read it.

    Raises:
        ValueError: If no layout fits.
        OSError: If `datasets` cannot load `source`.
    """
    folder = Path(source).expanduser().absolute()
    if folder.is_file():
        raise ValueError(f"{source} is a file; {EXPECTED}")
    for name in (karpathy.FILE, kaggle.FILE, flickr8k.FILE):
        if (folder / name).is_file():
            return _read_list(folder / name, seed, problems)
    return hub.read(str(folder if folder.is_dir() else source), seed, problems, EXPECTED)


def _read_list(path: Path, seed: int, problems: Problems) -> Table:
    """Read a text file that lists captions, and find the images beside it."""
    folder = path.parent
    listings: list[Listing] | None
    if path.name == karpathy.FILE:
        captions, listings = karpathy.read(path, problems)
    else:
        captions = list((kaggle if path.name == kaggle.FILE else flickr8k).read(path, problems))
        listings = flickr8k.read_split_files(folder, problems)
    captions_of = group_by_image(captions, path.name, problems)
    if listings is None:
        split_of = random_splits(captions_of, seed)
    else:
        split_of = official_splits(listings, captions_of, problems)
        if unlisted := len(captions_of) - len(split_of):
            log(logging.WARNING, f"{path.name}: {unlisted:,} images are in none of the split files and are left out")
    image_folders = [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]
    return make_table(path.name, captions_of, split_of, image_folders)
