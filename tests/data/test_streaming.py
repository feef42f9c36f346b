from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import layouts
import pytest
from layouts import CAPTIONS, SPLITS
from tiny_flickr import draw, environment, forget_process, make_folder, read_log, training_settings

from modeling_showattend import ShowAttendImageProcessor
from showattend.data.streaming import StreamSteps, stream_dataset
from showattend.training.trainer import train


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_a_stream_with_a_validation_split(tmp_path: Path) -> None:
    layouts.webdataset(tmp_path / "data")
    rows, validation = stream_dataset(tmp_path / "data")
    names = {split: [name for name in SPLITS if SPLITS[name] == split] for split in ("train", "validation")}
    streamed = list(rows)
    assert [row["captions"] for row in streamed] == [CAPTIONS[name] for name in names["train"]]
    assert [row["image"]["bytes"] for row in streamed] == [draw(*layouts.NAMES[name]) for name in names["train"]]
    assert validation["captions"][:] == [CAPTIONS[name] for name in names["validation"]]
    assert validation.column_names == ["image_id", "image", "captions"]
    assert validation[0]["image"].size == (64, 64)


def test_a_stream_without_splits_holds_out_its_first_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One row per caption; a held-out image comes again at the end, with unusable rows in between."""
    (tmp_path / "data").mkdir()
    whole = {name: draw(*drawing) for name, drawing in layouts.NAMES.items()}
    rows = [(name, whole[name], text) for name, texts in CAPTIONS.items() for text in texts]
    first = rows[0]
    rows += [("empty.jpg", whole["red_circle.jpg"], " "), ("dots.jpg", whole["red_circle.jpg"], "...")]
    rows += [("half.jpg", first[1][:300], "half an image"), first]
    features = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    columns = {"image": [{"path": n, "bytes": b} for n, b, _ in rows], "text": [text for _, _, text in rows]}
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "data" / "data.parquet")
    stream, validation = stream_dataset(tmp_path / "data", held_out=3)
    names = list(CAPTIONS)
    assert validation["image_id"][:] == names[:3]
    assert validation["captions"][:] == [CAPTIONS[name] for name in names[:3]]
    assert [(row["image_id"], row["captions"]) for row in stream] == [
        (name, [text]) for name in names[3:] for text in CAPTIONS[name]
    ]
    reports = [record.getMessage() for record in caplog.records]
    for name in ("empty.jpg", "dots.jpg"):
        assert any(report.endswith(f"image '{name}': the caption is empty") for report in reports)
    assert any("image 'half.jpg': " in report for report in reports)


def test_what_cannot_be_streamed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot stream .*expected a folder with"):
        stream_dataset(tmp_path)
    layouts.saved(tmp_path / "saved")
    layouts.webdataset(tmp_path / "data")
    with pytest.raises(ValueError, match="no column words, only"):
        stream_dataset(tmp_path / "data", caption_column="words")


@pytest.fixture
def make_steps(tmp_path: Path) -> Any:
    layouts.webdataset(tmp_path / "data")
    rows, _ = stream_dataset(tmp_path / "data")

    def make(process: int = 0, processes: int = 1, batch_size: int = 4, start: int = 0, epoch: int = 0) -> StreamSteps:
        return StreamSteps(
            rows,
            lambda captions: [[len(caption), 3] for caption in captions],
            ShowAttendImageProcessor(size={"height": 8, "width": 8}),
            steps=5,
            captions_per_item=1,
            process=process,
            start=start,
            batch_size=batch_size,
            micro_batches=1,
            processes=processes,
            flip=True,
            seed=0,
            epoch=epoch,
        )

    return make


def drawn(steps: StreamSteps) -> list[tuple[list, int]]:
    return [
        ([(batch.image_ids, batch.labels.tolist(), batch.inputs["pixel_values"].sum().item()) for batch in batches], n)
        for batches, n in steps
    ]


def test_steps_of_a_stream(make_steps: Any) -> None:
    whole = drawn(make_steps())
    assert len(whole) == len(make_steps()) == 5  # 12 captions in batches of 4: the stream restarts
    images = [image_id for batches, _ in whole[:3] for image_ids, _, _ in batches for image_id in image_ids]
    assert sorted(images) == sorted(name for name in SPLITS if SPLITS[name] == "train" for _ in range(2))
    assert all(num_labels == 8 for _, num_labels in whole)
    assert drawn(make_steps()) == whole
    assert drawn(make_steps(start=2)) == whole[2:]
    assert drawn(make_steps(epoch=1)) != whole


def test_two_processes_share_a_stream(make_steps: Any) -> None:
    whole = drawn(make_steps(batch_size=4))
    shares = [drawn(make_steps(process, processes=2, batch_size=2)) for process in range(2)]
    for (batches, num_labels), (first, one), (second, other) in zip(whole, *shares, strict=True):
        assert num_labels == one == other
        assert sorted(batches[0][0]) == sorted([*first[0][0], *second[0][0]])


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PATH", environment()["PATH"])
    forget_process()
    yield
    forget_process()


@pytest.mark.usefixtures("no_java")
def test_training_on_a_stream(tmp_path: Path) -> None:
    layouts.webdataset(tmp_path / "data")
    changes = dict(dataset=str(tmp_path / "data"), feature_cache="none", streaming_steps=3, epochs=2, num_workers=1)
    train(training_settings(make_folder(tmp_path / "tiny"), tmp_path / "run", **changes))
    log = read_log(tmp_path / "run")
    assert [line["epoch"] for line in log] == [1, 2]
    assert log[1]["train_loss"] < log[0]["train_loss"]
    assert not (tmp_path / "tiny" / "cache").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_cache": "disk"}, "`streaming_steps` needs `feature_cache` none"),
        ({"num_workers": 2}, "`num_workers` must be 0 or 1, not 2"),
        ({"prune_tokenizer": True}, "`prune_tokenizer` needs all training captions"),
        ({"objective": "self_critical", "init_from": "x"}, "`objective` self_critical needs all training captions"),
    ],
)
def test_settings_that_do_not_go_with_a_stream(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_settings(tmp_path, tmp_path, **{"streaming_steps": 3, "feature_cache": "none", **changes})
