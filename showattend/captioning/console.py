"""What a program prints: results on standard output, errors and the progress bar on standard error."""

import io
import re
import sys
import threading
from collections.abc import Callable
from typing import TextIO

from tqdm.auto import tqdm


class Console:
    """Prints around a progress bar, a line at a time, and counts the errors."""

    def __init__(self) -> None:
        self.errors = 0
        self._bar = tqdm(disable=True)
        if isinstance(sys.stdout, io.TextIOWrapper):  # the bytes of a file name may be no text in any encoding
            sys.stdout.reconfigure(
                errors="surrogateescape" if sys.stdout.encoding.lower() == "utf-8" else "backslashreplace"
            )

    def show_bar(self, unit: str, count: Callable[[], int] | None) -> None:
        """Show a bar if standard error is a terminal; `count` finds out its end meanwhile."""
        self._bar = tqdm(unit=f" {unit}", disable=None)
        if count is not None and not self._bar.disable:
            threading.Thread(target=self._set_total, args=[count], daemon=True).start()

    def _set_total(self, count: Callable[[], int]) -> None:
        self._bar.total = count()

    def move_bar(self, position: int) -> None:
        self._bar.update(position - self._bar.n)

    def print(self, *columns: str) -> None:
        """Print a line with a tab between columns. Raises BrokenPipeError where nobody reads it."""
        self._write("\t".join(map(one_line, columns)), sys.stdout)

    def error(self, message: object) -> None:
        if isinstance(message, OSError) and message.filename is not None:  # the system's: "[Errno 13] ..."
            message = f"{message.filename}: {message.strerror}"
        self.errors += 1
        self.note(f"error: {message}")

    def note(self, message: str) -> None:
        self._write(one_line(message), sys.stderr)

    def _write(self, line: str, stream: TextIO) -> None:
        with tqdm.external_write_mode(file=stream):
            print(line, file=stream, flush=True)

    def close(self) -> None:
        self._bar.close()


def one_line(text: str) -> str:
    """`text` with its control characters escaped: a file name may hold a newline."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda character: repr(character[0])[1:-1], text)
