"""Finds the files that a command line names: files, folders, patterns, URLs, and names on standard input."""

# Not pathlib: names stay as typed, and a million strings take less memory.
# ruff: noqa: PTH110, PTH112, PTH113, PTH118, PTH122, PTH207
import glob
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import BinaryIO

from PIL import Image

# Formats of data, documents and videos, which Pillow registers although it cannot read them by itself.
NOT_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}


def image_suffixes() -> set[str]:
    """The suffixes of images that Pillow reads, in lower case: `.jpg`, `.png`, ..."""
    return {suffix for suffix, form in Image.registered_extensions().items() if form not in NOT_IMAGES}


def is_url(name: str) -> bool:
    return name.lower().startswith(("http://", "https://"))


def is_one_file(name: str) -> bool:
    """Whether a name stands for a single file or URL."""
    if is_url(name) or os.path.lexists(name):
        return not os.path.isdir(name)
    return name != "-" and not glob.has_magic(name)


def list_files(names: Iterable[str], suffixes: Collection[str], report: Callable[[str], None]) -> Iterator[str]:
    """Find the files that `names` stand for, in a fixed order, with the names of one folder in memory at a time.

    A folder stands for the files in it and below that end in one of `suffixes` (in lower case), sorted by name, without
    hidden ones and without what lies behind links to other folders. A pattern (`*`, `?`, `[...]`) stands for the names
    that match it, as in a shell; one with `**`, which searches all folders below, only for files that end in one of
    `suffixes`. Any other name stands for itself, whether there is such a file or not. `report` is called for a folder
    that has no such file or cannot be read, and for a pattern without a match.
    """
    for name in names:
        if is_url(name) or os.path.lexists(name) or not glob.has_magic(name):
            yield from _named(name, suffixes, report)
            continue
        matches = sorted(glob.glob(name, recursive=True))
        if "**" in name:
            matches = [match for match in matches if _ends_in(match, suffixes) and not os.path.isdir(match)]
        if not matches:
            report(f"no file matches {name}")
        for match in matches:
            yield from _named(match, suffixes, report)


def _named(name: str, suffixes: Collection[str], report: Callable[[str], None]) -> Iterator[str]:
    if is_url(name) or not os.path.isdir(name):
        yield name
        return
    empty = True

    def report_instead(message: str) -> None:
        nonlocal empty
        empty = False
        report(message)

    for path in _below(name, suffixes, report_instead):
        empty = False
        yield path
    if empty:
        few = ", ".join(sorted(suffixes)) if len(suffixes) < 5 else ".jpg, .png or the like"
        report(f"no file in the folder {name} ends in {few}")


def _below(folder: str, suffixes: Collection[str], report: Callable[[str], None]) -> Iterator[str]:
    def unreadable(error: OSError) -> None:
        report(f"cannot read the folder {error.filename}: {error.strerror}")

    for path, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            file = os.path.join(path, name)
            if not name.startswith(".") and _ends_in(name, suffixes) and _can_be_read(file):
                yield file
        files.clear()  # walk keeps the list while it is in the folders below


def _can_be_read(path: str) -> bool:
    """Exclude pipes, whose reader would wait forever; keep broken links, so that their error is reported."""
    return os.path.isfile(path) or not os.path.exists(path)


def _ends_in(name: str, suffixes: Collection[str]) -> bool:
    return os.path.splitext(name)[1].lower() in suffixes


def read_names(stream: BinaryIO) -> Iterator[str]:
    """The names in a stream, as they arrive: one per line, or each ended by a NUL as `find -print0` writes them."""
    rest = b""
    separator = None
    while data := stream.read1(1 << 16):  # type: ignore[attr-defined]
        rest += data
        if separator is None and (b"\0" in rest or b"\n" in rest):
            separator = b"\0" if b"\0" in rest else b"\n"  # no name holds a NUL, but a name may hold a newline
        if separator is not None:
            *names, rest = rest.split(separator)
            yield from _decoded(names, separator)
    yield from _decoded([rest], separator or b"\n")


def _decoded(names: Iterable[bytes], separator: bytes) -> Iterator[str]:
    for name in names:
        name = name.removesuffix(b"\r") if separator == b"\n" else name
        if name:
            yield os.fsdecode(name)
