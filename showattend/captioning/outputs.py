"""Files of captions, JSON Lines or CSV, that a kill at any moment leaves good enough to go on from.

A row is a caption: `path`, `caption`, `score`. The rows of a photo stand together. Where several processes share the
photos, each writes a part beside the file, and the parts are merged in the order of the photos.
"""

import csv
import glob
import heapq
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
    """Appends the captions of a photo at a time, and has the system keep them if this process is killed.

    Raises:
        OSError: If the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.is_csv = self.path.suffix.lower() == ".csv"
        # A file name need not be valid Unicode. Its bytes stay as they are in CSV; JSON has an escape for each.
        errors = "surrogateescape" if self.is_csv else "backslashreplace"
        self._file = self.path.open("a", encoding="utf-8", errors=errors, newline="")
        if self.is_csv and self._file.tell() == 0:
            self._file.write(_csv_line(dict(zip(FIELDS, FIELDS, strict=True))))

    def append(self, rows: Iterable[Row]) -> None:
        """Add the rows of a photo."""
        encode = _csv_line if self.is_csv else _json_line
        self._file.write("".join(map(encode, rows)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _json_line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


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
    """Refuse a file that could not be written, or whose captions would be lost.

    Raises:
        ValueError: If its ending is unknown, or there are captions that are not to be gone on from.
        OSError: If there is no such folder.
    """
    path = Path(path)
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise ValueError(f"--output {path} must end in .jsonl or .csv, which says how it is written")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--output {path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise ValueError(f"--output {path} is there already, and is no file")
    if not resume and (_parts_of(path) or (path.exists() and path.stat().st_size)):
        raise ValueError(f"--output {path} holds captions already: go on with --resume, or name another file")


def recover(path: str | Path, captions_each: int) -> Paths:
    """Make the file of an interrupted run fit to be appended to.

    Parts that several processes left are merged into it, and what is not whole at its end is cut off.

    Args:
        path: There need be no such file.
        captions_each: How many captions a photo has.

    Returns:
        The photos that are in the file.

    Raises:
        ValueError: If the file holds something else.
        OSError: If it cannot be read or written.
    """
    done = _cut(path, captions_each)
    if _parts_of(path):
        merge_parts(path, captions_each, done)
        done = _cut(path, captions_each)
    return done


def _cut(path: str | Path, captions_each: int) -> Paths:
    if not Path(path).exists():
        return Paths()
    end = 0

    def paths() -> Iterator[str]:
        nonlocal end
        for rows, whole in _photos(Path(path), captions_each):
            end = whole
            if rows:
                yield rows[0]["path"]

    done = Paths(paths())
    os.truncate(path, end)
    return done


def part_of(path: str | Path, process: int) -> Path:
    """Where one process of several writes; its rows also have the photo's `index` among all photos."""
    return Path(f"{path}.part-{process}.jsonl")


def _parts_of(path: str | Path) -> list[Path]:
    path = Path(path)
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.part-*.jsonl"))


def merge_parts(path: str | Path, captions_each: int, done: Paths, expected: int | None = None) -> None:
    """Append the parts to the file in the order of the photos, and delete them.

    Args:
        done: The photos that the file has already, of a merge that was interrupted, for example.
        expected: How many parts there must be.

    Raises:
        OSError: If there are fewer, or the file cannot be written; the parts stay.
    """
    parts = _parts_of(path)
    if expected is not None and len(parts) < expected:
        raise OSError(
            f"only {len(parts)} of {expected} parts are here: copy those of the other machines beside it, "
            "and go on with --resume"
        )
    merged = CaptionFile(path)
    photos = [(rows for rows, _ in _photos(part, captions_each)) for part in parts]
    for rows in heapq.merge(*photos, key=lambda rows: rows[0]["index"]):
        if rows[0]["path"] not in done:
            merged.append({field: row[field] for field in FIELDS} for row in rows)
    merged.close()
    for part in parts:
        part.unlink()


def _photos(path: Path, captions_each: int) -> Iterator[tuple[list[Row], int]]:
    """The rows of each photo that has all of them, and where in the file they end; [] for a header."""
    rows: list[Row] = []
    for number, (row, end) in enumerate(_rows(path), start=1):
        if row is not None:
            rows.append(row)
            if row["path"] != rows[0]["path"]:
                raise ValueError(
                    f"{path}, row {number}: not every photo has {captions_each} captions; "
                    "go on with the --num-captions that the file was begun with"
                )
        if row is None or len(rows) == captions_each:
            yield rows, end
            rows = []


def _rows(path: Path) -> Iterator[tuple[Row | None, int]]:
    """The whole rows of a file, None for a header, and where in the file each ends."""
    is_csv = path.suffix.lower() == ".csv"
    end, record = 0, b""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            record += line
            if is_csv and record.count(b'"') % 2:
                continue  # a newline inside quotes
            if not record.endswith(b"\n"):
                return
            try:
                row = _parse_csv(record, first=end == 0) if is_csv else _parse_json(record)
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}: no row of path, caption and score; name another file"
                ) from error
            end += len(record)
            record = b""
            yield row, end


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
