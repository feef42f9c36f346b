"""Console output: captions on standard output, messages and a progress bar on standard error."""

import io
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger("showattend")


@contextmanager
def console() -> Iterator[None]:
    """Write what the package logs to standard error, one line a message, without tearing the progress bar."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # the bytes of a file name need not be text in any encoding
        utf8 = sys.stdout.encoding.lower() == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace", line_buffering=True)
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with logging_redirect_tqdm([logger]):
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return one_line(f"{level}{record.getMessage()}")


def progress_bar(unit: str, count: Callable[[], int] | None) -> tqdm:
    """A bar if standard error is a terminal; a thread finds its total with `count` meanwhile."""
    bar = tqdm(unit=f" {unit}", disable=None)

    def set_total() -> None:
        assert count is not None
        bar.total = count()

    if count is not None and not bar.disable:
        threading.Thread(target=set_total, daemon=True).start()
    return bar


def print_columns(*columns: str) -> None:
    """Print a line with a tab between columns, if standard output is open. BrokenPipeError if the reader is gone."""
    if sys.stdout is not None:  # tqdm 4.67 fails on None
        tqdm.write("\t".join(map(one_line, columns)), file=sys.stdout)


def one_line(text: str) -> str:
    """`text` with its control characters escaped: a file name may hold a newline."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda character: repr(character[0])[1:-1], text)
