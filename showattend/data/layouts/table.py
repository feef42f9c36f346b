"""Tables in text files: CSV, also with tabs, semicolons or bars between the cells; JSON Lines; a JSON list of objects.

Rows name an image's file and hold one caption or several; `split` is a column, or the name of the file or its folder.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..problems import Problems
from ..rows import Row, place
from .columns import CAPTION_COLUMNS, IMAGE_COLUMNS, Columns, find_columns, texts_of
from .image_files import ImageFiles
from .text import first_line, lines

CSV_SUFFIXES = (".csv", ".tsv", ".txt")
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
DELIMITERS = ("|", "\t", ";", ",")
MAX_LINES = 20  # the most lines of a row whose caption has line breaks

Names = tuple[str | None, str | None]  # of the image column and the caption column, as the user gives them


def columns_of(path: Path, names: Names) -> Columns | None:
    """The columns of a file's header or first object, or None if it is not a table of captions."""
    try:
        if path.suffix.lower() in CSV_SUFFIXES:
            return find_columns(_header(first_line(path)), *names)
        rows: Iterator[tuple[int, Any]] = _objects(path, Problems())
        first = next((row for _, row in rows if isinstance(row, dict)), {})
        return find_columns(first, *names)
    except (csv.Error, ValueError):
        return None


def read(path: Path, label: str, names: Names, split: str | None, problems: Problems) -> Iterator[Row]:
    """Rows of a table, which reports call `label`; without a column `split`, all are of `split`."""
    cells = _cells(path, label, problems) if path.suffix.lower() in CSV_SUFFIXES else _objects(path, problems, label)
    columns = columns_of(path, names)
    if columns is None:
        raise ValueError(_no_columns(path, names))
    files = ImageFiles(path.parent)
    for number, row in cells:
        try:
            name = str(row[columns.image] or "").strip().replace("\\", "/")
            captions = [text or "" for column in columns.captions for text in texts_of(row[column])]
            own_split = row.get(columns.split, "") if columns.split else split
        except (KeyError, TypeError, AttributeError):
            expected = ",".join([columns.image, *columns.captions])
            what = f"expected {expected}, got {json.dumps(row, ensure_ascii=False)[:80]}"
            problems.add("malformed rows", place(label, number), what)
        else:
            yield Row(label, number, name, files.find(name), captions, own_split)


def _cells(path: Path, label: str, problems: Problems) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV file by the names in its header.

    An unclosed quote must not swallow the rows below it, so a row ends with its line unless the next lines complete it
    and do not start with an image of their own.
    """
    numbered = list(lines(path, problems, label))
    if not numbered:
        return
    (_, header), rest = numbered[0], numbered[1:]
    delimiter = _delimiter(header)
    columns = _header(header)
    position = 0
    while position < len(rest):
        number, line = rest[position]
        cells, taken = _complete_row(rest, position, delimiter, columns)
        position += taken
        if cells is None:
            problems.add("malformed rows", place(label, number), f"expected {','.join(columns)}, got {line[:80]!r}")
        else:
            yield number, dict(zip(columns, cells, strict=True))


def _complete_row(
    rows: Sequence[tuple[int, str]], start: int, delimiter: str, columns: Sequence[str]
) -> tuple[list[str] | None, int]:
    """The cells of the row that begins with line `start`, and how many lines it takes; None and 1 if there is none."""
    text = ""
    for taken, index in enumerate(range(start, min(start + MAX_LINES, len(rows))), start=1):
        line = rows[index][1]
        if taken > 1 and _begins_with_image(line, delimiter):
            break
        text += line + "\n"
        try:
            cells = _split(text.removesuffix("\n"), delimiter, len(columns))
        except csv.Error:  # a quote that has not ended yet, or one in the wrong place
            continue
        return (cells, taken) if len(cells) == len(columns) else (None, 1)
    return None, 1


def _begins_with_image(line: str, delimiter: str) -> bool:
    suffix = Path(line.split(delimiter)[0].strip(' "')).suffix.lower()
    return suffix in Image.registered_extensions()


def _header(line: str) -> list[str]:
    return [column.strip() for column in _split(line, _delimiter(line))]


def _delimiter(header: str) -> str:
    return next((delimiter for delimiter in DELIMITERS if delimiter in header), ",")


def _split(line: str, delimiter: str, columns: int = -1) -> list[str]:
    if delimiter in "|\t":  # files with these have no quoting; the last cell, the caption, may contain the delimiter
        return line.split(delimiter, columns - 1 if columns > 0 else -1)
    return next(csv.reader(line.splitlines(keepends=True), delimiter=delimiter, strict=True), [])


def _objects(path: Path, problems: Problems, label: str = "") -> Iterator[tuple[int, Any]]:
    """Rows of JSON Lines, or of a JSON list, whose rows are counted from 1."""
    if path.suffix.lower() not in JSON_LINES_SUFFIXES:
        try:
            yield from enumerate(json.loads(path.read_text(encoding="utf-8-sig")), start=1)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error})") from error
        return
    for number, line in lines(path, problems, label):
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError):
            problems.add("malformed rows", place(label, number), f"expected JSON, got {line[:80]!r}")


def _no_columns(path: Path, names: Names) -> str:
    number, line = next(lines(path, Problems()), (1, ""))
    if path.suffix.lower() in CSV_SUFFIXES:
        expected = ",".join(name or usual for name, usual in zip(names, ("image", "caption"), strict=True))
        return f"{path}, row {number}: expected the header {expected}, got {line[:80]!r}"
    image, caption = names
    return (
        f"{path} has no columns of images and captions: expected {image or ', '.join(IMAGE_COLUMNS[:4])} and "
        f"{caption or ', '.join(CAPTION_COLUMNS[:7])}; others are named with `image_column` and `caption_column`"
    )
