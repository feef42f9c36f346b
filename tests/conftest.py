"""What every test needs before the libraries are imported: no network, no GPU, no user's cache, one thread each."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Code of checkpoints loaded with trust_remote_code is copied below HF_HOME: each test process gets its own.
_hf_home = tempfile.TemporaryDirectory(prefix="hf-home-")

os.environ["HF_HOME"] = _hf_home.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_EVALUATE_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
# Tests compare numbers to the last digits, which a GPU rounds otherwise. Set it to try them on one all the same.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


import torch  # noqa: E402
from tiny_flickr import environment, make_folder  # noqa: E402
from transformers import BertTokenizer  # noqa: E402

from modeling_showattend import (  # noqa: E402
    ShowAttendConfig,
    ShowAttendForConditionalGeneration,
    ShowAttendImageProcessor,
    ShowAttendProcessor,
)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("slow") and not os.environ.get("FLICKR8K"):
        pytest.skip("needs the real dataset: set FLICKR8K to its folder")


WORDS = ["a", "dog", "cat", "bird", "runs", "sits", "flies", "through", "on", "over", "the", "grass", "red", "ball"]
WORDS += ["photo", "of", "black", "white", "and"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with captions, of all splits."""
    return make_folder(tmp_path_factory.mktemp("flickr"))


@pytest.fixture(scope="module")
def no_java() -> Iterator[None]:
    """METEOR takes ten seconds to start, in training in every epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", environment()["PATH"])
        yield


@pytest.fixture
def make_config() -> Callable[..., ShowAttendConfig]:
    """Small sizes: an image of 64x64 pixels becomes a grid of 2x2 features."""

    def make(**changes: Any) -> ShowAttendConfig:
        sizes = {"embed_size": 8, "attention_dim": 8, "decoder_dim": 16, "vocab_size": len(SPECIAL) + len(WORDS)}
        tokens = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
        return ShowAttendConfig(**{"encoder_name": "resnet18", **sizes, **tokens, **changes})

    return make


@pytest.fixture
def make_model(make_config: Callable[..., ShowAttendConfig]) -> Callable[..., ShowAttendForConditionalGeneration]:
    """A captioner in eval mode whose predictions depend on the image and on all previous tokens.

    torch's initial weights are so small that every step predicts nearly the same, and then hardly any test could fail.
    """

    def make(seed: int = 0, **changes: Any) -> ShowAttendForConditionalGeneration:
        torch.manual_seed(seed)
        model = ShowAttendForConditionalGeneration(make_config(**changes)).eval()
        with torch.no_grad():
            for parameter in model.decoder.parameters():
                gain = 2 / parameter.shape[-1] ** 0.5 if parameter.ndim == 2 else 0.3
                parameter.normal_().mul_(gain)
            model.decoder.embedding.weight.normal_()
            model.decoder.fcn.weight.mul_(1.5)
            model.decoder.fcn.bias[3] += 1  # captions end, at different lengths
            # Statistics that fit the images, as in a trained ResNet: otherwise every feature is huge or zero.
            norms = [module for module in model.encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
            for norm in norms:
                norm.training, norm.momentum = True, 1.0
            model.encoder(pixel_values=torch.nn.functional.interpolate(torch.randn(8, 3, 4, 4), 64))
            for norm in norms:
                norm.training, norm.momentum = False, 0.1
        return model

    return make


@pytest.fixture
def checkpoint(
    tmp_path: Path, make_model: Callable[..., ShowAttendForConditionalGeneration], processor: ShowAttendProcessor
) -> Path:
    """The folder of a captioner."""
    make_model().save_pretrained(tmp_path / "captioner")
    processor.save_pretrained(tmp_path / "captioner")
    return tmp_path / "captioner"


@pytest.fixture
def image_features() -> torch.Tensor:
    """Features of three images, (3, 4, 512)."""
    return 1.5 * torch.randn(3, 4, 512, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pixel_values() -> torch.Tensor:
    """Two images, (2, 3, 64, 64)."""
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.interpolate(images, 64)


@pytest.fixture
def processor() -> ShowAttendProcessor:
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate([*SPECIAL, *WORDS])})
    return ShowAttendProcessor(ShowAttendImageProcessor(size={"height": 64, "width": 64}), tokenizer)
