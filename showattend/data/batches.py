"""The order of an epoch: which captions form which batch, for any number of processes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from .features import FLIPPED

POOL = 50  # batches that are sorted by length together: a larger pool pads less, a smaller one shuffles better


@dataclass
class Item:
    """The unit of shuffling: an image and some of its captions."""

    key: str  # the image's key in the cache or loader
    image_id: str
    labels: list[list[int]]  # the tokens of each caption, [SEP] included

    @property
    def length(self) -> int:
        return max(map(len, self.labels))


@dataclass
class Batch:
    """The images and captions of one process's forward pass."""

    inputs: dict[str, torch.Tensor]  # image_features or pixel_values, as the model takes them: (images, ...)
    labels: torch.Tensor  # (images * captions per image, steps), padded with -100
    image_ids: list[str]


class ImageInputs(Protocol):
    """Where the images of a batch come from: a [`FeatureCache`] or a [`PixelLoader`]."""

    input_name: str

    def get(self, keys: Sequence[str]) -> torch.Tensor: ...


def make_items(
    keys: Sequence[str], image_ids: Sequence[str], labels: Sequence[list[list[int]]], captions_per_item: int
) -> list[Item]:
    """Divide each image's captions into items of at most `captions_per_item`."""
    return [
        Item(key, image_id, captions[start : start + captions_per_item])
        for key, image_id, captions in zip(keys, image_ids, labels, strict=True)
        for start in range(0, len(captions), captions_per_item)
    ]


class Epoch:
    """One pass over all items, in an order that depends on `seed` and `epoch` alone.

    The batch of a step is drawn for all processes together and divided among them: two processes see what one process
    with twice the batch size would, and a resumed run sees exactly the items that are left. A batch holds captions of
    similar length, because it takes as many steps as its longest. (transformers' LengthGroupedSampler draws an order
    too, but knows no items of several captions, and its order depends on the batch size of one process.)

    Args:
        batch_size: Captions per forward pass of one process.
        micro_batches: Forward passes of one process whose gradients are accumulated before an optimizer step.
        processes: The number of processes that share a step.
        flip: Mirror each image half the time.
    """

    def __init__(
        self,
        items: Sequence[Item],
        batch_size: int,
        micro_batches: int = 1,
        processes: int = 1,
        flip: bool = False,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        random = np.random.default_rng((seed, epoch))
        self.items = items
        self.micro_batches = micro_batches
        self.processes = processes
        captions_per_item = max(len(item.labels) for item in items)
        per_step = max(batch_size // captions_per_item, 1) * micro_batches * processes
        order = random.permutation(len(items))
        missing = -len(order) % per_step  # fill the last batch from the beginning, so that all have the same size
        order = np.concatenate([order, np.resize(order, missing)])
        lengths = np.array([item.length for item in items])
        steps = []
        for start in range(0, len(order), POOL * per_step):
            pool = order[start : start + POOL * per_step]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            steps += [pool[start : start + per_step] for start in range(0, len(pool), per_step)]
        self.steps = [steps[number] for number in random.permutation(len(steps))]
        self.flips = random.random(len(order)).reshape(len(steps), per_step) < 0.5
        if not flip:
            self.flips[:] = False

    def __len__(self) -> int:
        return len(self.steps)

    def num_labels(self, step: int) -> int:
        """The number of labels in the step on all processes, by which the summed loss is divided."""
        return sum(len(labels) for number in self.steps[step] for labels in self.items[number].labels)

    def share_of(self, step: int, process: int) -> Iterator[list[tuple[Item, bool]]]:
        """The step's micro-batches for one process: items, and whether each is mirrored."""
        drawn = list(zip([self.items[number] for number in self.steps[step]], self.flips[step], strict=True))
        mine = drawn[process :: self.processes]
        size = len(mine) // self.micro_batches
        for start in range(0, len(mine), size):
            yield mine[start : start + size]


class StepDataset(torch.utils.data.Dataset[tuple[list[Batch], int]]):
    """The steps of an epoch from `start` on, as one process sees them: its micro-batches and the number of labels."""

    def __init__(self, epoch: Epoch, images: ImageInputs, process: int, start: int = 0) -> None:
        self.epoch, self.images, self.process, self.start = epoch, images, process, start

    def __len__(self) -> int:
        return len(self.epoch) - self.start

    def __getitem__(self, number: int) -> tuple[list[Batch], int]:
        step = self.start + number
        batches = [collate(drawn, self.images) for drawn in self.epoch.share_of(step, self.process)]
        return batches, self.epoch.num_labels(step)


def collate(drawn: Sequence[tuple[Item, bool]], images: ImageInputs) -> Batch:
    """Images and padded labels; an image with fewer captions than the others gets empty rows."""
    inputs = {images.input_name: images.get([item.key + (FLIPPED if flipped else "") for item, flipped in drawn])}
    captions = max(len(item.labels) for item, _ in drawn)
    steps = max(item.length for item, _ in drawn)
    labels = torch.full((len(drawn), captions, steps), -100)
    for row, (item, _) in enumerate(drawn):
        for column, tokens in enumerate(item.labels):
            labels[row, column, : len(tokens)] = torch.tensor(tokens)
    return Batch(inputs, labels.flatten(0, 1), [item.image_id for item, _ in drawn])


def random_crop(maps: torch.Tensor, least: float) -> torch.Tensor:
    """Crop a random window of each image or feature map: one size for the batch, one place per image.

    (images, channels, side, side) -> (images, channels, size, size), with `least` * side <= size <= side.
    """
    side = maps.shape[-1]
    size = int(torch.randint(math.ceil(least * side), side + 1, ()))
    tops, lefts = torch.randint(0, side - size + 1, (2, len(maps))).tolist()
    return torch.stack(
        [image[:, top : top + size, left : left + size] for image, top, left in zip(maps, tops, lefts, strict=True)]
    )
