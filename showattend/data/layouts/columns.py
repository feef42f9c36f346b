"""Finds the columns of a table that hold the image, its captions and its split."""

import ast
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

# The usual names, in order of preference.
IMAGE_COLUMNS = (
    *("file_name", "filename", "image", "image_name", "image_path", "image_file", "img", "img_path", "filepath"),
    *("path", "file", "photo", "picture", "jpg", "jpeg", "png", "webp"),
)
CAPTION_COLUMNS = (
    *("captions", "caption", "sentences", "sentence", "raw", "texts", "text", "txt", "comments", "comment"),
    *("descriptions", "description", "json"),
)
NUMBERED = r"(caption|sentence|text|comment)_?\d+"  # caption_0, caption_1, ...
TEXT_KEYS = ("raw", "captions", "caption", "text")  # of a caption that is an object, as in Karpathy's files


class Columns(NamedTuple):
    """Names of columns, as the table spells them."""

    image: str
    captions: list[str]
    split: str | None


def find_column(names: Iterable[str], usual: Iterable[str], named: str | None) -> str | None:
    """The column that a user named, or the first with a usual name; case and spaces around it do not matter."""
    spelled = {name.strip().lower(): name for name in reversed(list(names))}
    wanted = usual if named is None else [named.strip().lower()]
    return next((spelled[name] for name in wanted if name in spelled), None)


def find_captions(names: Iterable[str], named: str | None) -> list[str]:
    """The column of captions, or the numbered ones that hold one each."""
    names = list(names)
    numbered = [name for name in names if re.fullmatch(NUMBERED, name.strip().lower())]
    if numbered and named is None:
        return sorted(numbered, key=lambda name: int(re.sub(r"\D", "", name)))
    column = find_column(names, CAPTION_COLUMNS, named)
    return [] if column is None else [column]


def find_columns(names: Iterable[str], image_column: str | None, caption_column: str | None) -> Columns | None:
    """The columns of a table whose cells are text, or None if it has no image or caption column."""
    names = list(names)
    image = find_column(names, IMAGE_COLUMNS, image_column)
    captions = find_captions([name for name in names if name != image], caption_column)
    if image is None or not captions:
        return None
    return Columns(image, captions, find_column(names, ("split",), None))


def texts_of(value: Any) -> list[str | None]:
    """The captions of a cell: a text, a list of texts or of objects that hold one, or such a list written as text.

    Raises:
        TypeError: If it holds something else.
    """
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = _parsed_list(value)
    if isinstance(value, dict):
        key = next((key for key in TEXT_KEYS if key in value), None)
        value = value[key] if key else value
    if value is None or isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in texts_of(item)]
    raise TypeError(f"expected a caption, got {value!r}")


def _parsed_list(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):  # as JSON and as pandas write a list into a CSV cell
        try:
            items = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return items
    return text
