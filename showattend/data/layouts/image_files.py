"""Finds the images that a text file names."""

import os
from pathlib import Path

FOLDERS = (
    *("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset"),
    *("flickr30k_images", "flickr30k-images", "flickr30k_images/flickr30k_images"),
)


class ImageFiles:
    """Finds images by name in a folder, in its usual subfolders ([`FOLDERS`]), or in its only subfolder.

    Args:
        folder: The folder of the file that names the images.
        inner: Folders to look into first, relative to it.
    """

    def __init__(self, folder: Path, *inner: str) -> None:
        names = [*inner, *FOLDERS, "."]
        self.folders = [str(folder / name) for name in dict.fromkeys(names) if (folder / name).is_dir()]
        others = [entry.path for entry in os.scandir(folder) if is_folder(entry) and not entry.name.startswith(".")]
        if len(others) == 1:
            self.folders += others
        self._found: dict[tuple[str, ...], str] = {}

    def find(self, *names: str) -> str:
        """The path of the first name that exists; if none does, of the first name."""
        if names not in self._found:
            paths = [os.path.join(folder, name) for folder in self.folders for name in names]  # noqa: PTH118 (its speed)
            self._found[names] = next(filter(os.path.isfile, paths), paths[0])
        return self._found[names]


def is_folder(entry: os.DirEntry[str]) -> bool:
    """As `entry.is_dir()`, but False for a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False
