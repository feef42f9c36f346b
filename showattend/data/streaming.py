"""Streams datasets during training: WebDataset tars, Parquet files, a dataset on the Hub."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch

from modeling_showattend import ShowAttendImageProcessor

from .batches import POOL, Batch, Epoch, collate, make_items
from .images import check, image_bytes, image_name
from .layouts import EXPECTED, hub
from .layouts.columns import Columns, texts_of
from .pixels import PixelLoader
from .problems import log
from .rows import FEATURES, has_words
from .splits import standard_split

HELD_OUT = 1000
BUFFER = 1000  # rows in the shuffle buffer, about 150 MB
STREAM_FEATURES = datasets.Features(
    {**FEATURES, "image": datasets.Image(decode=False), "digest": datasets.Value("string")}
)


def stream_dataset(
    source: str | Path,
    *,
    held_out: int = HELD_OUT,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> tuple[datasets.IterableDataset, datasets.Dataset]:
    """Streams a dataset that [`load_captions`] would load, without downloading all of it.

    Rows are not merged by image. Unusable ones are reported and left out.

    Args:
        source: A folder with Parquet files or WebDataset tars, or a Hub id.
        held_out: The number of images to validate on.

    Returns:
        The training rows, with the columns `image_id`, `image` (undecoded), `captions` and `digest` (of the image's
        bytes); and, in memory, the images to validate on, as [`load_captions`] gives them: the first of the split
        `validation`, else the first of the stream. They are filtered out of the training rows.

    Raises:
        ValueError: If there is no column of images or of captions, or nothing is left to train or validate on.
        OSError: If `datasets` cannot load `source`.
    """
    folder = Path(source).expanduser().absolute()
    name = str(folder) if folder.is_dir() else str(source)
    try:
        parts = datasets.load_dataset(name, streaming=True)
    except hub.LOAD_ERRORS as error:
        raise OSError(f"cannot stream {name!r} with datasets ({' '.join(str(error).split())}); {EXPECTED}") from error
    splits = {
        standard_split(split) or "train": _rows(part, name, (image_column, caption_column))
        for split, part in parts.items()
    }
    train = splits.get("train")
    if train is None:
        raise ValueError(f"{source} has no train split to stream: it has {', '.join(parts)}")
    validation = _first_images(splits.get("validation", train), held_out)
    if not len(validation):
        raise ValueError(f"{source} has no readable image with a caption")
    held = set(validation["digest"])
    # One filter, after `cast`: before datasets 5, a dataset mapped with `features` or filtered cannot be filtered.
    train = train.filter(lambda row: bool(row["captions"]) and row["digest"] not in held)
    return train, validation.remove_columns("digest")


def _rows(
    part: datasets.IterableDataset, source: str, names: tuple[str | None, str | None]
) -> datasets.IterableDataset:
    if part.features is None:
        raise ValueError(f"{source} cannot be streamed: it does not say what its columns hold")
    columns = hub.columns_of(source, part.features, names)
    rows = part.cast_column(columns.image, datasets.Image(decode=False))
    read = partial(_read, source=source, columns=columns)
    return rows.map(read, remove_columns=part.column_names).cast(STREAM_FEATURES)


def _read(row: dict[str, Any], source: str, columns: Columns) -> dict[str, Any]:
    image = row[columns.image]
    fault, digest = check(image)
    name = image_name(image) or digest
    if not fault and image["bytes"] is None:  # a file in an archive or on the Hub: read it only once
        image = {"path": image["path"], "bytes": image_bytes(image)}
    texts = [text for column in columns.captions for text in texts_of(row[column])]
    captions = [text.strip() for text in texts if text and has_words(text)]
    if fault or not captions:
        log(logging.WARNING, f"{source}: image {name!r}: {fault or 'the caption is empty'}")
    return {"image_id": name, "image": image, "captions": [] if fault else captions, "digest": digest}


def _first_images(rows: datasets.IterableDataset, count: int) -> datasets.Dataset:
    images: dict[str, dict[str, Any]] = {}
    names: set[str] = set()
    for row in rows:
        if not row["captions"]:
            continue
        if row["digest"] in images:
            images[row["digest"]]["captions"] += row["captions"]
            continue
        if len(images) == count:
            break
        if row["image_id"] in names:
            row["image_id"] = row["digest"]
        names.add(row["image_id"])
        images[row["digest"]] = row
    return datasets.Dataset.from_list(list(images.values()), STREAM_FEATURES).cast_column("image", datasets.Image())


class StreamSteps(torch.utils.data.IterableDataset[tuple[list[Batch], int]]):
    """An epoch of a stream: a fixed number of steps, in the form of [`StepDataset`].

    Every process reads the whole stream but decodes only its share of the images. So each knows the number of labels of
    a step, and two processes see what one process with twice the batch size would. Every epoch restarts the stream with
    its files in another order; rows are shuffled in a buffer and batched by length as in [`Epoch`].

    Args:
        rows: The training rows from [`stream_dataset`].
        tokenize: Returns the labels of each of an image's captions.
        steps: The number of optimizer steps. The other arguments are those of [`make_items`], [`StepDataset`] and
            [`Epoch`].
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        tokenize: Callable[[list[str]], list[list[int]]],
        image_processor: ShowAttendImageProcessor,
        steps: int,
        captions_per_item: int,
        process: int,
        start: int = 0,
        **order: Any,
    ) -> None:
        self.rows = rows.shuffle(seed=order["seed"], buffer_size=BUFFER)
        self.rows.set_epoch(order["epoch"])
        self.tokenize, self.image_processor = tokenize, image_processor
        self.steps, self.captions_per_item, self.process, self.start = steps, captions_per_item, process, start
        self.order = order

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[tuple[list[Batch], int]]:
        step = 0
        for number, pool in enumerate(self._pools()):
            epoch, images = self._ordered(pool, number)
            for place in range(len(epoch)):
                if step >= self.start:
                    batches = [collate(drawn, images) for drawn in epoch.share_of(place, self.process)]
                    yield batches, epoch.num_labels(place)
                step += 1
                if step == self.steps:
                    return

    def _pools(self) -> Iterator[list[dict[str, Any]]]:
        """Pools of rows, each for at most [`POOL`] steps, without end."""
        per_step = self.order["batch_size"] * self.order["micro_batches"] * self.order["processes"]
        while True:
            rows = iter(self.rows)
            empty = True
            while pool := list(islice(rows, POOL * per_step)):
                empty = False
                yield pool
            if empty:
                raise ValueError("the stream has no row left to train on")

    def _ordered(self, pool: list[dict[str, Any]], number: int) -> tuple[Epoch, PixelLoader]:
        images = PixelLoader(self.image_processor)
        rows = datasets.Dataset.from_list(pool, STREAM_FEATURES).cast_column("image", datasets.Image())
        keys = images.build(rows)
        labels = [self.tokenize(row["captions"]) for row in pool]
        items = make_items(keys, [row["image_id"] for row in pool], labels, self.captions_per_item)
        epoch = self.order["epoch"] * 1_000_003 + number  # another order in each pool of each epoch
        return Epoch(items, **{**self.order, "epoch": epoch}), images
