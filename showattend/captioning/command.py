"""Captions files by name, and prints the captions or writes them to a file, beside the images or into web pages."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import groupby
from typing import IO, Any, TypeAlias

from tqdm import tqdm

from .alt_text import ImageTag, Page, find_pages, write_sidecar
from .console import logger, print_columns, progress_bar
from .inputs import image_suffixes, is_one_file, list_files, read_names
from .outputs import CaptionFile
from .stream import Caption

# [`caption_stream`] with a captioner: maps pairs (key, image source) to pairs (key, captions).
Stream: TypeAlias = Callable[[Iterable[tuple[Any, Any]]], Iterator[tuple[Any, list[Caption] | Exception]]]
Keep: TypeAlias = Callable[[str, list[Caption]], None]  # takes an image's name and its captions


class Failures:
    """Logs each failure, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, error: object) -> None:
        if isinstance(error, OSError) and error.filename is not None:  # the system's: "[Errno 13] ..."
            error = f"{error.filename}: {error.strerror}"
        self.count += 1
        logger.error("%s", error)


def caption_images(
    names: list[str], stream: Stream, keep: Keep, failed: Failures, skip: Callable[[str], bool] = lambda name: False
) -> None:
    """Caption the images that `names` stand for: files, folders, patterns, URLs, or `-` for names on standard input.

    Args:
        failed: Called with the reason for every name or image that gets no caption.
        skip: Whether an image already has its captions.
    """
    skipped = 0

    def images() -> Iterator[tuple[tuple[int, str], str]]:
        nonlocal skipped
        for number, name in enumerate(list_files(_with_stdin(names), image_suffixes(), failed), start=1):
            if skip(name):
                skipped += 1
            else:
                yield (number, name), name

    with _progress("photos", names, lambda: list_files(names, image_suffixes(), _ignore)) as bar:
        for (number, name), outcome in stream(images()):
            if isinstance(outcome, Exception):
                failed(outcome if name in str(outcome) else f"{name}: {outcome}")
            else:
                keep(name, outcome)
            bar.update(number - bar.n)
    if skipped:
        logger.info("%d of the photos already had captions", skipped)


def print_captions(names: list[str]) -> Keep:
    """Print the captions, with the image's name before each unless `names` stand for a single file."""

    def keep(name: str, captions: list[Caption]) -> None:
        for caption in captions:
            print_columns(*([] if _is_one(names) else [name]), caption.text)

    return keep


def append_to(file: CaptionFile) -> Keep:
    return lambda name, captions: file.append(
        {"path": name, "caption": caption.text, "score": round(caption.score, 4)} for caption in captions
    )


def write_beside(names: list[str], failed: Failures) -> Keep:
    """Write the caption into a text file beside the image, and print it."""
    print_them = print_captions(names)

    def keep(name: str, captions: list[Caption]) -> None:
        try:
            write_sidecar(name, captions[0].text)
        except OSError as error:
            failed(error)
        else:
            print_them(name, captions)

    return keep


def caption_pages(names: list[str], stream: Stream, failed: Failures) -> None:
    """Give the images of HTML files an `alt` where they have none, and print page, line and caption of each.

    `names` and `failed` are those of [`caption_images`].
    """

    def images() -> Iterator[tuple[tuple[int, Page, ImageTag], str | IO[bytes]]]:
        for number, (path, root) in enumerate(find_pages(_with_stdin(names), failed), start=1):
            try:
                page = Page(path)
            except OSError as error:
                failed(error)
                continue
            for tag in page.tags:
                try:
                    yield (number, page, tag), page.source(tag, root)
                except ValueError as error:
                    failed(f"{path}:{tag.line}: {error}")

    with _progress("pages", names, lambda: find_pages(names, _ignore)) as bar:
        for (number, page), outcomes in groupby(stream(images()), key=lambda pair: pair[0][:2]):
            captions: list[tuple[ImageTag, str]] = []
            for (_, _, tag), outcome in outcomes:
                if isinstance(outcome, Exception):
                    failed(f"{page.path}:{tag.line}: {outcome}")
                else:
                    captions.append((tag, outcome[0].text))
            try:
                page.write(captions)
            except OSError as error:
                failed(error)
            else:
                for tag, caption in captions:
                    print_columns(f"{page.path}:{tag.line}", caption)
            bar.update(number - bar.n)


def _with_stdin(names: list[str]) -> Iterator[str]:
    """The names, with those on standard input in place of `-`."""
    for name in names:
        if name == "-":
            yield from read_names(sys.stdin.buffer)
        else:
            yield name


def _is_one(names: list[str]) -> bool:
    return len(names) == 1 and is_one_file(names[0])


def _progress(unit: str, names: list[str], everything: Callable[[], Iterable[Any]]) -> closing[tqdm]:
    if _is_one(names):
        return closing(tqdm(disable=True))
    return closing(progress_bar(unit, None if "-" in names else lambda: sum(1 for _ in everything())))


def _ignore(message: str) -> None:
    pass
