"""Turns a stream of images into a stream of captions: threads read ahead while a batch is captioned."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

Key = TypeVar("Key")


class Caption(NamedTuple):
    text: str
    score: float  # mean log probability of a token


class Captioner(Protocol):
    """A captioner for streams of images, in torch or ONNX Runtime."""

    def read(self, source: Any) -> Any:
        """Read and preprocess one image; several threads call this at once. OSError or ValueError if it cannot."""

    def caption(self, images: Sequence[Any]) -> list[list[Caption]]:
        """Caption what [`read`] returned, the best caption of each image first; MemoryError if it is too much."""


def caption_stream(
    captioner: Captioner, images: Iterable[tuple[Key, Any]], batch_size: int = 32
) -> Iterator[tuple[Key, list[Caption] | Exception]]:
    """Caption images in batches, in their order and in constant memory.

    Args:
        images: Pairs of a key, which is passed through, and what the captioner reads: a path, a URL, a file.

    Yields:
        The key with the image's captions, or with the error that kept the image from being read.
    """
    images = iter(images)
    reading: deque[tuple[Key, Future[Any]]] = deque()
    readers = ThreadPoolExecutor(thread_name_prefix="image-reader")
    try:
        while True:
            for key, source in islice(images, 3 * batch_size - len(reading)):
                reading.append((key, readers.submit(captioner.read, source)))
            if not reading:
                return
            batch = [reading.popleft() for _ in range(min(batch_size, len(reading)))]
            outcomes: list[Any] = [_outcome(future) for _, future in batch]
            read = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
            captions = iter(captioner.caption(read) if read else [])
            for (key, _), outcome in zip(batch, outcomes, strict=True):
                yield key, outcome if isinstance(outcome, Exception) else next(captions)
    finally:
        readers.shutdown(wait=False, cancel_futures=True)


def _outcome(reading: Future[Any]) -> Any:
    """The result of reading, or the error that prevented it."""
    try:
        return reading.result()
    except (OSError, ValueError) as error:
        return error
