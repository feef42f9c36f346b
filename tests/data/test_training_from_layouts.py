"""A short training run from each layout: the same images and captions give the same losses."""

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import layouts
import pytest
from tiny_flickr import environment, forget_process, training_settings

from showattend.training.trainer import train


@pytest.fixture(scope="module", autouse=True)
def no_java(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", environment()["PATH"])
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[Callable[[Path], None], str]:
    """The logs of one layout with splits and one without."""
    return {write: log_of(write, folder) for write in (layouts.karpathy, layouts.kaggle)}


def log_of(write: Callable[[Path], None], folder: Path) -> str:
    data, output = folder / write.__name__, folder / f"run-{write.__name__}"
    write(data)
    columns = {"image_column": "picture", "caption_column": "words"} if write is layouts.saved else {}
    forget_process()
    train(training_settings(folder, output, dataset=str(data), **columns))
    return (output / "log.jsonl").read_text()


@pytest.mark.parametrize("write", layouts.WITH_SPLITS[1:], ids=lambda write: write.__name__)
def test_layouts_with_splits(write: Callable[[Path], None], folder: Path, expected: dict) -> None:
    assert log_of(write, folder) == expected[layouts.karpathy]


@pytest.mark.parametrize("write", layouts.WITHOUT_SPLITS[1:], ids=lambda write: write.__name__)
def test_layouts_without_splits(write: Callable[[Path], None], folder: Path, expected: dict) -> None:
    assert log_of(write, folder) == expected[layouts.kaggle]
