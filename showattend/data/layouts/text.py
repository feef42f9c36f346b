"""Lines of a text file."""

from collections.abc import Iterator
from pathlib import Path

from ..problems import Problems
from ..rows import place


def lines(path: Path, problems: Problems, label: str = "") -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers; decoded one by one, so that a bad byte costs a single line.

    Raises:
        ValueError: If the file is in UTF-16, as Excel writes "Unicode text".
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise ValueError(f"{path} is in UTF-16: save it as UTF-8")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                what = f"not UTF-8 ({error.reason})"
                problems.add("malformed rows", place(label or path.name, number), what)
                continue
            if line.strip():
                yield number, line


def first_line(path: Path) -> str:
    """The first line that is not blank; empty if there is none, or the file holds no text."""
    try:
        return next(lines(path, Problems()), (1, ""))[1]
    except ValueError:
        return ""
