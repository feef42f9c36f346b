"""Collects what is wrong in a dataset's files while they are read, and reports it at once."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .rows import CaptionedImage

logger = logging.getLogger(__name__)

MAX_REPORTED = 20


@dataclass
class Problems:
    """The problems of one dataset, in the order in which they are found."""

    found: list[tuple[str, str]] = field(default_factory=list)  # kind, in the plural for the summary, and message

    def add(self, kind: str, where: str, what: str) -> None:
        """Add a problem: `malformed rows`, `captions.txt, row 8`, `expected ...`."""
        self.found.append((kind, f"{where}: {what}"))

    def summary(self) -> str:
        """The number of problems of each kind; empty if there is none."""
        counts = Counter(kind for kind, _ in self.found)
        return "; ".join(f"{kind}: {count:,}" for kind, count in counts.items())

    def report(self, source: str | Path, splits: Mapping[str, Sequence["CaptionedImage"]]) -> None:
        """Log the first problems, and how many images and captions are left in each split."""
        for _, message in self.found[:MAX_REPORTED]:
            log(logging.WARNING, message)
        if len(self.found) > MAX_REPORTED:
            log(logging.WARNING, f"... and {len(self.found) - MAX_REPORTED:,} more")
        sizes = ", ".join(f"{len(images):,} {split}" for split, images in splits.items()) or "no"
        captions = sum(len(image.captions) for images in splits.values() for image in images)
        level = logging.WARNING if self.found else logging.INFO
        log(level, f"{source}: {sizes} images with {captions:,} captions; left out: {self.summary() or 'nothing'}")


def log(level: int, message: str) -> None:
    """Log on the main process alone, as every process of a distributed run reads the data."""
    if os.environ.get("RANK", "0") == "0":
        logger.log(level, message)
