import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from tiny_flickr import COLOURS, draw

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendImageProcessor
from showattend.data.features import FLIPPED, FeatureCache, image_digests

MakeModel = Callable[..., ShowAttendForConditionalGeneration]


def make_images(folder: Path, shape: str = "circle") -> Dataset:
    """Four images in files."""
    folder.mkdir()
    for colour in COLOURS:
        (folder / f"{colour}.jpg").write_bytes(draw(colour, shape))
    paths = [str(folder / f"{colour}.jpg") for colour in COLOURS]
    features = Features({"image_id": Value("string"), "image": Image()})
    return Dataset.from_dict({"image_id": list(COLOURS), "image": paths}, features)


@pytest.fixture
def images(tmp_path: Path) -> Dataset:
    return make_images(tmp_path / "photos")


@pytest.fixture
def image_processor() -> ShowAttendImageProcessor:
    return ShowAttendImageProcessor(size={"height": 64, "width": 64})


@pytest.fixture
def make_cache(
    make_model: MakeModel, image_processor: ShowAttendImageProcessor, tmp_path: Path
) -> Callable[..., FeatureCache]:
    """A new cache object, as in another run of the program."""

    def make(**changes: Any) -> FeatureCache:
        return FeatureCache(tmp_path / "cache", make_model(**changes).encoder, image_processor)

    return make


class Counting:
    """Counts the images that an encoder sees, and is interrupted after a number of batches."""

    def __init__(self, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch, interrupt_after: int = 1000) -> None:
        self.interrupt_after = interrupt_after
        self.reset()
        self.compute = cache.encoder.frozen_features
        monkeypatch.setattr(cache.encoder, "frozen_features", self)

    def reset(self) -> None:
        self.images, self.batches = 0, -1  # each build begins with one blank image, for the shape

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.batches == self.interrupt_after:
            raise KeyboardInterrupt
        self.batches += 1
        self.images += len(pixel_values) if self.batches > 0 else 0
        return self.compute(pixel_values)


def expected(cache: FeatureCache, images: Dataset, flipped: bool = False) -> torch.Tensor:
    pixel_values = cache.image_processor(images["image"][:], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        return cache.encoder.frozen_features(pixel_values.flip(-1) if flipped else pixel_values)


@pytest.mark.parametrize(("stages", "shape"), [(0, (4, 512)), (1, (256, 4, 4)), (2, (128, 8, 8))])
def test_rows_are_the_frozen_features(
    make_cache: Callable[..., FeatureCache], images: Dataset, stages: int, shape: tuple[int, ...]
) -> None:
    cache = make_cache(finetune_last_stages=stages)
    cache.build(images, flipped=True, batch_size=3)  # the last batch is smaller
    digests = image_digests(images)
    rows = cache.get(digests)
    assert rows.dtype == torch.float16 and rows.shape == (4, *shape)
    torch.testing.assert_close(rows.float(), expected(cache, images), rtol=2e-3, atol=2e-3)
    mirrored = cache.get([digest + FLIPPED for digest in digests])
    torch.testing.assert_close(mirrored.float(), expected(cache, images, flipped=True), rtol=2e-3, atol=2e-3)
    assert (rows - mirrored).abs().max() > 0.1
    assert torch.equal(cache.get([digests[2], digests[0], digests[2]]), rows[[2, 0, 2]])


def test_another_run_finds_the_rows_and_adds_to_them(
    make_cache: Callable[..., FeatureCache], images: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    digests = image_digests(images)
    first = make_cache()
    first.build(images.select([0, 1]))
    earlier = first.get(digests[:2])
    second = make_cache()
    seen = Counting(second, monkeypatch)
    second.build(images)
    assert seen.images == 2
    assert torch.equal(second.get(digests[:2]), earlier)
    assert torch.equal(first.get(digests[:2]), earlier)  # the file grew under the run that was there before
    seen.reset()
    second.build(make_images(tmp_path / "elsewhere").shuffle(seed=1))  # the same bytes under other names and places
    assert seen.images == 0
    seen.reset()
    second.build(make_images(tmp_path / "others", shape="square"))  # other bytes under the same names
    assert seen.images == 4
    torch.testing.assert_close(second.get(digests).float(), expected(second, images), rtol=2e-3, atol=2e-3)


def test_bfloat16_is_the_same_but_for_rounding(
    make_model: MakeModel, image_processor: ShowAttendImageProcessor, tmp_path: Path, images: Dataset
) -> None:
    rows = {}
    for dtype in (torch.float32, torch.bfloat16):
        cache = FeatureCache(tmp_path / "cache", make_model().encoder, image_processor, dtype)
        rows[dtype] = cache.get(cache.build(images)).float()
    error = (rows[torch.bfloat16] - rows[torch.float32]).abs().mean() / rows[torch.float32].abs().mean()
    assert 0 < error < 0.03


def test_changed_encoder_or_preprocessing_has_rows_of_its_own(
    make_model: MakeModel, image_processor: ShowAttendImageProcessor, tmp_path: Path
) -> None:
    caches = []
    changed: Any = make_model()
    with torch.no_grad():
        changed.encoder.resnet[4][0].conv1.weight[0, 0, 0, 0] += 1e-6
    statistics: Any = make_model()
    statistics.encoder.resnet[1].running_mean[0] += 1e-6
    caches += [FeatureCache(tmp_path, model.encoder, image_processor) for model in (changed, statistics)]
    encoder = make_model().encoder
    caches.append(FeatureCache(tmp_path, encoder, image_processor, torch.bfloat16))
    for settings in ({"size": {"height": 96, "width": 96}}, {"image_mean": [0.5, 0.5, 0.5]}, {"do_center_crop": True}):
        processor = ShowAttendImageProcessor(**({"size": {"height": 64, "width": 64}} | settings))
        caches.append(FeatureCache(tmp_path, encoder, processor))
    for name, value, changes in (
        ("finetune_last_stages", 1, {}),
        ("stride_in_1x1", True, {"encoder_name": "resnet50"}),
    ):
        models = [make_model(**changes), make_model(**changes, **{name: value})]
        models[1].load_state_dict(models[0].state_dict())  # the same weights
        caches += [FeatureCache(tmp_path, model.encoder, image_processor) for model in models]
    assert len({cache.folder.name for cache in caches}) == len(caches)


def test_what_training_changes_leaves_the_rows_valid(
    make_cache: Callable[..., FeatureCache],
    make_model: MakeModel,
    image_processor: ShowAttendImageProcessor,
    tmp_path: Path,
) -> None:
    model: Any = make_model(finetune_last_stages=1)
    with torch.no_grad():
        model.encoder.resnet[-1][0].conv1.weight += 1
    folder = make_cache(finetune_last_stages=1).folder
    assert FeatureCache(tmp_path / "cache", model.encoder, image_processor).folder == folder
    # A second phase starts from what the first one saved.
    model.save_pretrained(tmp_path / "saved")
    image_processor.save_pretrained(tmp_path / "saved")
    loaded = ShowAttendForConditionalGeneration.from_pretrained(tmp_path / "saved")
    processor = ShowAttendImageProcessor.from_pretrained(tmp_path / "saved")
    assert FeatureCache(tmp_path / "cache", loaded.encoder, processor).folder == folder


def test_interrupted_build_resumes(
    make_cache: Callable[..., FeatureCache], images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache()
    Counting(cache, monkeypatch, interrupt_after=2)
    with pytest.raises(KeyboardInterrupt):
        cache.build(images, batch_size=1)
    cache = make_cache()
    seen = Counting(cache, monkeypatch)
    cache.build(images, batch_size=1)
    assert seen.images == 2
    torch.testing.assert_close(cache.get(image_digests(images)).float(), expected(cache, images), rtol=2e-3, atol=2e-3)


def test_row_is_done_only_once_it_is_on_disk(
    make_cache: Callable[..., FeatureCache], images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: np.memmap) -> None:
        raise OSError("no disk")

    cache = make_cache()
    with monkeypatch.context() as patch:
        patch.setattr(np.memmap, "flush", fail)
        with pytest.raises(OSError, match="no disk"):
            cache.build(images)
    assert not any((cache.folder / "done.uint8").read_bytes())
    cache = make_cache()
    cache.build(images)
    assert (cache.folder / "done.uint8").read_bytes() == b"\1" * 4


def test_kill_before_the_index_is_written(
    make_cache: Callable[..., FeatureCache], images: Dataset, tmp_path: Path
) -> None:
    """The files have room for images that the index does not know, and there is half an index beside it."""
    cache = make_cache()
    cache.build(images.select([0]))
    for name, size in (("features.float16", 2 * 4 * 512 * 9), ("done.uint8", 9)):
        with (cache.folder / name).open("ab") as file:
            file.truncate(size)
    (cache.folder / "rows.new").write_text('{"half an ind')
    cache = make_cache()
    cache.build(images)
    torch.testing.assert_close(cache.get(image_digests(images)).float(), expected(cache, images), rtol=2e-3, atol=2e-3)


def test_room_is_checked_before_any_image_is_encoded(
    make_cache: Callable[..., FeatureCache], images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache()
    seen = Counting(cache, monkeypatch)
    needed = 8 * 4 * 512 * 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(OSError, match=r"^The features of 8 images need .* `cache_dir`\.$"):
        cache.build(images, flipped=True)
    assert seen.images == 0 and not (cache.folder / "features.float16").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    cache.build(images, flipped=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    cache.build(images)  # nothing is missing: no room is needed


def test_unwritable_folder(
    make_model: MakeModel, image_processor: ShowAttendImageProcessor, images: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    cache = FeatureCache(tmp_path / "file" / "cache", make_model().encoder, image_processor)
    with pytest.raises(OSError, match=r"^The features' folder .*/file/cache/\w+ cannot be written \(.*`cache_dir`\.$"):
        cache.build(images)


def test_get_before_build(make_cache: Callable[..., FeatureCache]) -> None:
    with pytest.raises(ValueError, match="call build first"):
        make_cache().get(["0"])


def test_rows_stay_on_disk_and_take_200_kilobytes(make_model: MakeModel, images: Dataset, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, make_model(encoder_name="resnet50").encoder, ShowAttendImageProcessor())
    cache.build(images.select([0]))
    assert cache.get(image_digests(images)[:1]).shape == (1, 49, 2048)
    assert (cache.folder / "features.float16").stat().st_size == 49 * 2048 * 2 == 200_704
    assert list(json.loads((cache.folder / "rows.json").read_text()).values()) == [0]
