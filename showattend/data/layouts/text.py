"""Lines of a text file."""

from collections.abc import Iterator
from pathlib import Path

from ..problems import Problems
from ..rows import place


def lines(path: Path, problems: Problems, label: str = "") -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers; decoded one by one, so that a bad byte costs a single line."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                what = f"not UTF-8 ({error.reason})"
                problems.add("malformed rows", place(label or path.name, number), what)
                continue
            if line.strip():
                yield number, line
