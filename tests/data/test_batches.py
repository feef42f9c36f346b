from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image
from tiny_flickr import draw
from torch.utils.data import DataLoader

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendImageProcessor
from showattend.data.batches import Epoch, Item, StepDataset, collate, make_items, random_crop
from showattend.data.features import FLIPPED, FeatureCache, image_digests

MakeModel = Callable[..., ShowAttendForConditionalGeneration]


def make_captions(images: int = 23, captions: int = 5) -> list[Item]:
    """One item per caption, each with 3 to 9 distinct tokens."""
    labels = [
        [[100 * image + caption] * (3 + (image * caption) % 7) for caption in range(captions)]
        for image in range(images)
    ]
    names = [f"photo {image}" for image in range(images)]
    return make_items(names, names, labels, captions_per_item=1)


def drawn(epoch: Epoch, process: int = 0) -> list[list[list[tuple[int, bool]]]]:
    """Steps of micro-batches of captions, each identified by its first token, and whether it is mirrored."""
    return [
        [[(item.labels[0][0], flipped) for item, flipped in batch] for batch in epoch.share_of(step, process)]
        for step in range(len(epoch))
    ]


def flat(steps: list[list[list[tuple[int, bool]]]]) -> list[int]:
    return [caption for step in steps for batch in step for caption, _ in batch]


@pytest.mark.parametrize("batch_size", [1, 8, 23, 200])
def test_every_caption_comes_once_except_what_fills_the_last_batch(batch_size: int) -> None:
    items = make_captions()
    counts = Counter(flat(drawn(Epoch(items, batch_size))))
    assert counts.keys() == {item.labels[0][0] for item in items}
    drawn_in_all = -(-len(items) // batch_size) * batch_size
    assert counts.total() == drawn_in_all
    if drawn_in_all < 2 * len(items):
        assert sorted(counts.values()) == [1] * (2 * len(items) - drawn_in_all) + [2] * (drawn_in_all - len(items))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    items = make_captions()
    torch.manual_seed(0)
    first = drawn(Epoch(items, 8, flip=True, seed=3, epoch=2))
    torch.manual_seed(1)
    assert drawn(Epoch(items, 8, flip=True, seed=3, epoch=2)) == first
    others = [drawn(Epoch(items, 8, flip=True, seed=seed, epoch=epoch)) for seed, epoch in ((3, 3), (4, 2), (2, 3))]
    for number, other in enumerate(others):
        assert other not in [first, *others[:number]]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_processes_and_micro_batches_share_out_a_step(processes: int, micro_batches: int) -> None:
    items = make_captions()
    together = Epoch(items, 4 * processes * micro_batches, flip=True)
    shared = Epoch(items, 4, micro_batches, processes, flip=True)
    assert len(shared) == len(together)
    shares = [drawn(shared, process) for process in range(processes)]
    for step, whole in enumerate(drawn(together)):
        mine = [share[step] for share in shares]
        assert all(len(batches) == micro_batches for batches in mine)
        assert all(len(batch) == 4 for batches in mine for batch in batches)
        assert sorted(chain(*chain(*mine))) == sorted(whole[0])


def test_batches_hold_captions_of_similar_length() -> None:
    items = make_captions()
    epoch = Epoch(items, 5)
    for step in range(len(epoch)):
        (batch,) = epoch.share_of(step, 0)
        lengths = [item.length for item, _ in batch]
        assert max(lengths) - min(lengths) <= 1
    steps = [epoch.items[numbers[0]].length for numbers in epoch.steps]
    assert steps != sorted(steps)  # but the short ones do not all come first


def test_labels_are_counted_over_all_processes() -> None:
    items = make_captions()
    epoch = Epoch(items, 3, micro_batches=2, processes=2)
    for step in range(len(epoch)):
        shares = chain(*(chain(*epoch.share_of(step, process)) for process in range(2)))
        assert epoch.num_labels(step) == sum(len(item.labels[0]) for item, _ in shares)


def test_captions_of_an_image_share_a_batch() -> None:
    labels = [[[1], [2], [3], [4], [5]], [[6, 6], [7]], [[8]]]
    items = make_items("abc", ["a.jpg", "b.jpg", "c.jpg"], labels, captions_per_item=2)
    assert [(item.key, item.image_id, item.labels) for item in items] == [
        ("a", "a.jpg", [[1], [2]]),
        ("a", "a.jpg", [[3], [4]]),
        ("a", "a.jpg", [[5]]),
        ("b", "b.jpg", [[6, 6], [7]]),
        ("c", "c.jpg", [[8]]),
    ]
    assert items[3].length == 2
    # batch_size counts captions, and at least one image is drawn
    assert [len(Epoch(items, size).steps[0]) for size in (1, 2, 4, 5)] == [1, 1, 2, 2]


def test_flips_come_when_asked_and_half_the_time() -> None:
    items = make_captions(images=200)
    assert not any(flipped for step in drawn(Epoch(items, 8)) for _, flipped in step[0])
    flips = [flipped for step in drawn(Epoch(items, 8, flip=True)) for _, flipped in step[0]]
    assert 0.4 < sum(flips) / len(flips) < 0.6


def test_random_crop() -> None:
    torch.manual_seed(0)
    images = torch.arange(3 * 2 * 8 * 8.0).view(3, 2, 8, 8)
    sizes, places = set(), set()
    for _ in range(60):
        crop = random_crop(images, 0.6)
        size = crop.shape[-1]
        assert crop.shape == (3, 2, size, size)
        sizes.add(size)
        for image, window in zip(images, crop, strict=True):
            top, left = divmod(int(window[0, 0, 0] - image[0, 0, 0]), 8)
            assert torch.equal(window, image[:, top : top + size, left : left + size])
            places.add((size, top, left))
    assert sizes == {5, 6, 7, 8}
    assert {(5, 0, 0), (5, 3, 3)} <= places and {place[1:] for place in places if place[0] == 8} == {(0, 0)}
    assert torch.equal(random_crop(images, 1.0), images)


# --- with features ---


@pytest.fixture
def features(make_model: MakeModel, tmp_path: Path) -> FeatureCache:
    for shape in ("circle", "square", "triangle"):
        (tmp_path / f"{shape}.jpg").write_bytes(draw("red", shape))
    paths = [str(tmp_path / f"{shape}.jpg") for shape in ("circle", "square", "triangle")]
    images = Dataset.from_dict({"image": paths}, Features({"image": Image()}))
    processor = ShowAttendImageProcessor(size={"height": 64, "width": 64})
    cache = FeatureCache(tmp_path / "cache", make_model().encoder, processor)
    cache.build(images, flipped=True)
    assert list(cache.rows)[:3] == image_digests(images)
    return cache


def test_collate(features: FeatureCache) -> None:
    a, b = list(features.rows)[:2]
    items = [Item(a, "a.jpg", [[5, 3], [6, 7, 3]]), Item(b, "b.jpg", [[8, 3]])]
    batch = collate([(items[0], False), (items[1], True)], features)
    assert torch.equal(batch.inputs["image_features"], features.get([a, b + FLIPPED]))
    assert batch.labels.tolist() == [[5, 3, -100], [6, 7, 3], [8, 3, -100], [-100] * 3]
    assert batch.image_ids == ["a.jpg", "b.jpg"]
    assert collate([(items[1], False)], features).labels.tolist() == [[8, 3]]  # as long as its longest


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_sees_what_it_has_not_seen(features: FeatureCache, workers: int) -> None:
    names = list(features.rows)[:3]
    items = make_items(names, names, [[[10 * image + i, 3] for i in range(5)] for image in range(3)], 1)
    epoch = Epoch(items, 2, micro_batches=2, flip=True)

    def read(start: int) -> list[tuple[list[tuple[torch.Tensor, torch.Tensor]], int]]:
        steps = StepDataset(epoch, features, process=0, start=start)
        loader = DataLoader(steps, batch_size=None, num_workers=workers)
        return [
            ([(batch.inputs["image_features"], batch.labels) for batch in batches], labels)
            for batches, labels in loader
        ]

    whole, rest = read(0), read(2)
    assert len(whole) == 4 and len(rest) == 2
    for (batches, labels), (expected_batches, expected_labels) in zip(rest, whole[2:], strict=True):
        assert labels == expected_labels == 8 and len(batches) == 2
        for batch, expected in zip(batches, expected_batches, strict=True):
            assert all(torch.equal(*pair) for pair in zip(batch, expected, strict=True))
