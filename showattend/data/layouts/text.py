"""Lines of a text file."""

from collections.abc import Iterator
from pathlib import Path

from ..problems import Problems


def lines(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Rows that are not blank, with their numbers. Bytes are decoded line by line, so that a bad one costs one row."""
    with path.open("rb") as file:
        for row, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if row == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                problems.add("malformed rows", f"{path.name}, row {row}", f"not UTF-8 ({error.reason})")
                continue
            if line.strip():
                yield row, line
