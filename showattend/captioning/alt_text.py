"""Writes captions for screen readers: into the `alt` of a page's images, or into a text file beside each image."""

import html
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname, urlopen

from .inputs import is_url, list_files

HTML_SUFFIXES = {".html", ".htm", ".xhtml"}


@dataclass(frozen=True)
class ImageTag:
    """An `<img>` without an `alt`."""

    line: int
    position: int  # in the page's text, right after "<img"
    src: str
    base: str  # the page's <base href>, or ""


class _ImageTags(HTMLParser):
    _TEXT = ("script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes")  # "<img" is text in these
    CDATA_CONTENT_ELEMENTS = _TEXT  # type: ignore[misc]

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[int, int, str]] = []
        self.base = ""
        self._line_starts = [0]
        for line in text.split("\n"):
            self._line_starts.append(self._line_starts[-1] + len(line) + 1)
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(reversed(attrs))  # of two attributes of one name, the first counts
        if tag == "base" and not self.base:
            self.base = (attributes.get("href") or "").strip()
        if tag == "img" and "alt" not in attributes:
            line, column = self.getpos()
            position = self._line_starts[line - 1] + column + len("<img")
            self.tags.append((line, position, (attributes.get("src") or "").strip()))


class Page:
    """An HTML file, and those of its images that have no `alt`. An empty `alt` is one: it marks decoration."""

    def __init__(self, path: str) -> None:
        self.path = path
        data = self._read()
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise OSError(f"cannot read {path}: it is in UTF-16, which pages on the web are not; save it as UTF-8")
        self._text = data.decode("utf-8", "surrogateescape")  # preserves the bytes of other encodings
        parsed = _ImageTags(self._text)
        self.tags = [ImageTag(line, position, src, parsed.base) for line, position, src in parsed.tags]

    def _read(self) -> bytes:
        if is_url(self.path):
            raise OSError(f"cannot rewrite {self.path}: only files can be")
        try:
            return Path(self.path).read_bytes()
        except OSError as error:
            raise OSError(f"cannot read {self.path}: {error.strerror}") from error

    def source(self, tag: ImageTag, root: str) -> str | IO[bytes]:
        """What an image shows: a path, a URL, or a file in memory for a data: URI; ValueError if there is none.

        Args:
            root: The folder of the site, which a `src` that begins with `/` starts from.
        """
        if not tag.src:
            raise ValueError("the <img> has no src")
        src = urljoin(tag.base, tag.src)
        src = f"https:{src}" if src.startswith("//") else src
        if is_url(src):
            return src
        parts = urlsplit(src)
        if parts.scheme == "data":
            try:
                with urlopen(src) as response:
                    file = io.BytesIO(response.read())
            except (OSError, ValueError) as error:
                raise ValueError("the data: URI is damaged") from error
            file.name = "the data: URI"
            return file
        if parts.scheme == "file":
            return url2pathname(parts.path)
        if parts.scheme:
            raise ValueError(f"cannot read {src}: neither a file nor an http(s) URL")
        path = unquote(parts.path, errors="surrogateescape")
        folder = Path(root) if path.startswith("/") else Path(self.path).parent
        return str(folder / path.lstrip("/"))

    def write(self, captions: list[tuple[ImageTag, str]]) -> None:
        """Give images their `alt`, and change no other byte; OSError if the file has changed since it was read."""
        pieces, end = [], 0
        for tag, caption in sorted(captions, key=lambda pair: pair[0].position):
            # ASCII character references are valid in every encoding that a page may have.
            value = html.escape(caption).encode("ascii", "xmlcharrefreplace").decode()
            pieces += [self._text[end : tag.position], f' alt="{value}"']
            end = tag.position
        text = "".join([*pieces, self._text[end:]])
        if self._read() != self._text.encode("utf-8", "surrogateescape"):
            raise OSError(f"cannot write {self.path}: it has been changed in the meantime")
        if captions:
            _replace(self.path, text.encode("utf-8", "surrogateescape"))


def find_pages(names: Iterable[str], report: Callable[[str], None]) -> Iterator[tuple[str, str]]:
    """Find HTML files as [`list_files`] does, each with the site's root: the named folder, or else the file's own."""
    for name in names:
        for path in list_files([name], HTML_SUFFIXES, report):
            yield path, name if os.path.isdir(name) else str(Path(path).parent)  # noqa: PTH112 - of any length


def _sidecar(image: str) -> Path:
    return Path(image).parent / f"{Path(image).stem}.txt"


def has_sidecar(image: str) -> bool:
    """Whether an image has its text file: `dog.txt` beside `dog.jpg`."""
    return not is_url(image) and os.path.lexists(_sidecar(image))


def write_sidecar(image: str, caption: str) -> None:
    """Write the caption beside the image; OSError if an image that differs only in its suffix has one there."""
    if is_url(image):
        raise OSError(f"{image}: there is no place for a text beside a URL")
    path = _sidecar(image)
    if os.path.lexists(path):
        raise FileExistsError(f"{image}: {path} has been written for another photo")
    _replace(path, f"{caption}\n".encode())


def _replace(path: str | Path, data: bytes) -> None:
    """Write a file atomically."""
    target = Path(os.path.realpath(path))  # a link stays a link
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
