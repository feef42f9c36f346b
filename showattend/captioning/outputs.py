"""Files of captions, JSON Lines or CSV, that can be resumed after a kill at any moment.

Each row is a caption: `path`, `caption`, `score`. The rows of an image are adjacent.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

FIELDS = ["path", "caption", "score"]
Row = dict[str, Any]


class CaptionFile:
    """Appends the captions of one image at a time; they survive a kill of this process."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.is_csv = self.path.suffix.lower() == ".csv"
        # A file name need not be valid Unicode. Its bytes stay as they are in CSV; JSON has an escape for each.
        errors = "surrogateescape" if self.is_csv else "backslashreplace"
        self._file = self.path.open("a", encoding="utf-8", errors=errors, newline="")
        if self.is_csv and self._file.tell() == 0:
            self._file.write(_csv_header())

    def append(self, rows: Iterable[Row]) -> None:
        encode = _csv_line if self.is_csv else _json_line
        self._file.write("".join(map(encode, rows)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _json_line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _csv_header() -> str:
    return _csv_line(dict(zip(FIELDS, FIELDS, strict=True)))


def _csv_line(row: Row) -> str:
    line = io.StringIO()
    csv.DictWriter(line, FIELDS, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow(row)
    return line.getvalue()


class Paths:
    """A set of paths in 8 bytes each."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._digests = np.sort(np.fromiter(map(_digest, paths), dtype=np.uint64))

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, path: str) -> bool:
        place = np.searchsorted(self._digests, np.uint64(_digest(path)))
        return bool(place < len(self._digests) and self._digests[place] == _digest(path))


def _digest(path: str) -> int:
    return int.from_bytes(blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def check_output(path: str | Path, resume: bool) -> None:
    """Raise ValueError or OSError if a file cannot be written, or its captions would be mixed with others."""
    path = Path(path)
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise ValueError(f"`output` {path} must end in .jsonl or .csv, which says how it is written.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"`output` {path}: there is no folder {path.parent}.")
    if path.exists() and not path.is_file():
        raise ValueError(f"`output` {path} exists and is not a file.")
    if not resume and path.exists() and path.stat().st_size:
        raise ValueError(f"`output` {path} already holds captions: continue it with `resume`, or name another file.")


def recover(path: str | Path, num_captions: int) -> Paths:
    """Prepare an interrupted run's file for appending: cut off what is incomplete at its end.

    Returns:
        The images that have all of their `num_captions` in the file.

    Raises:
        ValueError: If the file holds something else.
    """
    if not Path(path).exists():
        return Paths()
    end = 0

    def paths() -> Iterator[str]:
        nonlocal end
        for rows, end in _images(Path(path), num_captions):  # noqa: B007 - the last one is used
            if rows:
                yield rows[0]["path"]

    done = Paths(paths())
    os.truncate(path, end)
    return done


def _images(path: Path, num_captions: int) -> Iterator[tuple[list[Row], int]]:
    """The rows of each image that has all of them, and where in the file they end; [] for a header."""
    previous: list[Row] = []
    rows: list[Row] = []
    for number, (row, end) in enumerate(_rows(path), start=1):
        if row is not None:
            rows.append(row)
            # An image that was named twice has the same captions twice.
            repeats = rows == previous[: len(rows)]
            if row["path"] != rows[0]["path"] or (previous and row["path"] == previous[0]["path"] and not repeats):
                raise ValueError(
                    f"{path}, row {number}: not every image has {num_captions} captions; "
                    "resume with the number that the file was started with."
                )
        if row is None or len(rows) == num_captions:
            yield rows, end
            previous, rows = rows, []


def _rows(path: Path) -> Iterator[tuple[Row | None, int]]:
    """The whole rows of a file, None for a header, and where in the file each ends.

    `data.caption_files` reads the captions of other programs as well, but needs no place to resume from.
    """
    is_csv = path.suffix.lower() == ".csv"
    begin = (_csv_header() if is_csv else '{"path": "').encode()
    end, record = 0, b""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            record += line
            if is_csv and record.count(b'"') % 2:
                continue  # a newline inside quotes
            if not record.endswith(b"\n"):
                break
            try:
                row = _parse_csv(record, first=end == 0) if is_csv else _parse_json(record)
            except ValueError as error:
                raise _not_ours(path, number) from error
            end += len(record)
            record = b""
            yield row, end
    if end == 0 and record[: len(begin)] != begin[: len(record)]:
        raise _not_ours(path, 1)


def _not_ours(path: Path, line: int) -> ValueError:
    return ValueError(f"{path}, line {line}: not a row of path, caption and score; name another file.")


def _parse_csv(record: bytes, first: bool) -> Row | None:
    [values] = csv.reader(io.StringIO(record.decode("utf-8", "surrogateescape"), newline=""))
    if first != (values == FIELDS) or len(values) != len(FIELDS):
        raise ValueError(values)
    return None if first else dict(zip(FIELDS, values, strict=True))


def _parse_json(record: bytes) -> Row:
    row = json.loads(record)
    if not isinstance(row, dict) or not set(row) >= set(FIELDS) or not isinstance(row["path"], str):
        raise ValueError(row)
    return row
