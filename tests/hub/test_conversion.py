"""A checkpoint of the write-up's network, re-implemented here from its equations, must caption as before."""

import io
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from tiny_flickr import ROOT, run_command
from torch import nn
from torch.nn import functional as F
from torchvision import transforms
from transformers import AutoModelForImageTextToText, AutoProcessor

from showattend.hub.conversion import convert_checkpoint, read_state_dict

IMAGES = [ROOT / "docs" / "photos" / name for name in ("dog.webp", "horse.webp", "cow.webp")]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(40))]
CLS, SEP = 2, 3
StateDict = dict[str, torch.Tensor]


class EncoderCNN(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.resnet = nn.Sequential(*list(torchvision.models.get_model(name, weights=None).children())[:-2])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.resnet(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, encoder_dim: int, decoder_dim: int, attention_dim: int) -> None:
        super().__init__()
        self.W = nn.Linear(decoder_dim, attention_dim)
        self.U = nn.Linear(encoder_dim, attention_dim)
        self.A = nn.Linear(attention_dim, 1)

    def forward(self, features: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.A(torch.tanh(self.U(features) + self.W(h)[:, None]))[..., 0]
        alpha = F.softmax(scores, dim=1)
        return alpha, torch.einsum("bp,bpd->bd", alpha, features)


class DecoderRNN(nn.Module):
    def __init__(self, embed_size: int, attention_dim: int, encoder_dim: int, decoder_dim: int, words: int) -> None:
        super().__init__()
        self.attention = Attention(encoder_dim, decoder_dim, attention_dim)
        self.embedding = nn.Embedding(words, embed_size)
        self.init_h = nn.Linear(encoder_dim, decoder_dim)
        self.init_c = nn.Linear(encoder_dim, decoder_dim)
        self.lstm_cell = nn.LSTMCell(embed_size + encoder_dim, decoder_dim)
        self.fcn = nn.Linear(decoder_dim, words)
        self.drop = nn.Dropout(0.5)

    def start(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.init_h(features.mean(1)), self.init_c(features.mean(1))

    def step(
        self, features: torch.Tensor, word: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        alpha, context = self.attention(features, state[0])
        state = self.lstm_cell(torch.cat([self.embedding(word), context], dim=1), state)
        return self.fcn(self.drop(state[0])), alpha, state


class EncoderDecoder(nn.Module):
    def __init__(self, encoder_name: str, encoder_dim: int) -> None:
        super().__init__()
        self.encoder = EncoderCNN(encoder_name)
        self.decoder = DecoderRNN(
            embed_size=24, attention_dim=20, encoder_dim=encoder_dim, decoder_dim=32, words=len(TOKENS)
        )

    def forward(self, images: torch.Tensor, captions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.encoder(images)
        state = self.decoder.start(features)
        logits, alphas = [], []
        for word in captions.T:
            output, alpha, state = self.decoder.step(features, word, state)
            logits.append(output)
            alphas.append(alpha)
        return torch.stack(logits, 1), torch.stack(alphas, 1)

    def caption(self, image: torch.Tensor, max_len: int = 50) -> list[int]:
        features = self.encoder(image)
        state = self.decoder.start(features)
        words = [CLS]
        while len(words) <= max_len:
            output, _, state = self.decoder.step(features, torch.tensor(words[-1:]), state)
            words.append(int(output.argmax()))
            if words[-1] == SEP:
                break
        return words[1:]


def trained_network(encoder_name: str, encoder_dim: int) -> EncoderDecoder:
    """As if trained: statistics that drifted in train(), and weights that leave no part idle or saturated."""
    torch.manual_seed(0)
    network = EncoderDecoder(encoder_name, encoder_dim)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            module.momentum = 0.7
    decoder, images = network.decoder, pixels(IMAGES)
    with torch.no_grad():
        for _ in range(3):
            network.encoder(images)
        features = network.eval().encoder(images)
        # Values computed from the features vary between positions with a standard deviation around 1.
        context_weight = decoder.lstm_cell.weight_ih[:, decoder.embedding.embedding_dim :]
        for weight in (decoder.attention.U.weight, decoder.init_h.weight, decoder.init_c.weight, context_weight):
            weight /= (features @ weight.T).std(dim=(0, 1)).mean()
        decoder.embedding.weight *= 3
        decoder.attention.W.weight *= 15
        decoder.attention.A.weight *= 10
        decoder.lstm_cell.weight_hh *= 8
        decoder.fcn.weight *= 8
    return network


def pixels(images: list[Path]) -> torch.Tensor:
    transform = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()])
    return torch.stack([transform(Image.open(image).convert("RGB")) for image in images])


@pytest.fixture(scope="module")
def network() -> EncoderDecoder:
    return trained_network("resnet18", 512)


@pytest.fixture
def state(network: EncoderDecoder) -> StateDict:
    return dict(network.state_dict())


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(TOKENS))
    return path


def load_converted(state: StateDict, vocab: Path, folder: Path) -> tuple[Any, Any]:
    torch.save(OrderedDict(state), folder / "model.pth")
    convert_checkpoint(folder / "model.pth", folder / "converted", vocab)
    model = AutoModelForImageTextToText.from_pretrained(folder / "converted", trust_remote_code=True)
    return model, AutoProcessor.from_pretrained(folder / "converted", trust_remote_code=True)


@pytest.mark.parametrize(("encoder_name", "encoder_dim"), [("resnet18", 512), ("resnet50", 2048)])
def test_logits_and_attention_are_the_original_ones(
    encoder_name: str, encoder_dim: int, vocab: Path, tmp_path: Path
) -> None:
    network = trained_network(encoder_name, encoder_dim)
    model, processor = load_converted(network.state_dict(), vocab, tmp_path)
    assert model.config.encoder_name == encoder_name
    captions = torch.randint(4, len(TOKENS), (len(IMAGES), 12))
    captions[:, 0] = CLS
    pixel_values = processor(IMAGES, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixel_values, pixels(IMAGES))
    with torch.no_grad():  # in float64, where a convolution's order of summation does not matter
        logits, alphas = network.double()(pixels(IMAGES).double(), captions)
        outputs = model.double()(pixel_values=pixel_values.double(), decoder_input_ids=captions)
    # The comparison is meaningful: the attention is focused, and differs between images and steps.
    assert 0.1 < alphas.amax(dim=2).mean() < 0.9
    assert alphas.std(dim=0).mean() > 0.01
    assert alphas.std(dim=1).mean() > 0.01
    assert logits.std(dim=0).mean() > 0.1
    torch.testing.assert_close(outputs.cross_attentions[0].squeeze(1), alphas)
    torch.testing.assert_close(outputs.logits, logits)


@pytest.mark.parametrize(("sep_bias", "stops"), [(-100.0, False), (1.0, True)])
def test_greedy_captions_are_the_original_ones(
    sep_bias: float, stops: bool, network: EncoderDecoder, vocab: Path, tmp_path: Path
) -> None:
    network.decoder.fcn.bias.data[SEP] = sep_bias
    model, processor = load_converted(network.state_dict(), vocab, tmp_path)
    lengths = []
    for image in IMAGES:
        with torch.no_grad():
            expected = network.caption(pixels([image]))
        generated = model.generate(**processor(image, return_tensors="pt"))
        assert generated[0].tolist() == [CLS, *expected]
        lengths.append(len(expected))
    assert all(1 < length < 50 for length in lengths) if stops else lengths == [50, 50, 50]
    assert processor.decode(generated[0], skip_special_tokens=True).startswith("word")


def test_data_parallel_and_a_gpu_leave_no_trace(
    state: StateDict, vocab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    model, _ = load_converted({f"module.{key}": value for key, value in state.items()}, vocab, tmp_path)
    converted = model.state_dict()
    assert converted.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(converted[key], value, rtol=0, atol=0)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(new_format: bool, vocab: Path, tmp_path: Path) -> None:
    evidence, path = tmp_path / "evidence", tmp_path / "model.pth"
    torch.save({"decoder.fcn.bias": Malicious(evidence)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(
        ValueError, match=r"model\.pth is not a plain state dict .* code from a file is never run"
    ) as error:
        convert_checkpoint(path, tmp_path / "converted", vocab)
    assert "\n" not in str(error.value)
    assert not evidence.exists()
    assert not (tmp_path / "converted").exists()
    torch.load(path, weights_only=False)
    assert evidence.exists()  # it would have worked


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(2, 2), "whole pickled model"),
        ([torch.zeros(2)], "holds a list, not a state dict"),
        ({"epoch": 3, "model": {}}, "its entry 'epoch' is of type int"),
        (nn.Linear(2, 2).state_dict(), "no matrix decoder.attention.W.weight and no decoder.embedding.weight"),
    ],
)
def test_another_file_of_torch_is_refused(content: object, message: str, vocab: Path, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=rf"model\.pth.* {message}"):
        convert_checkpoint(tmp_path / "model.pth", tmp_path / "converted", vocab)


@pytest.mark.parametrize("kept", [0, 100, 5000])
@pytest.mark.parametrize("new_format", [True, False])
def test_a_truncated_file_is_refused(new_format: bool, kept: int, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(nn.Linear(90, 90).state_dict(), path, _use_new_zipfile_serialization=new_format)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.pth is truncated, damaged or not a file of torch\.save") as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("new_format", [True, False])
def test_no_damage_gives_a_traceback(new_format: bool, tmp_path: Path) -> None:
    """Damaged bytes make torch.load raise about ten types of exception; all become one error."""
    path, file, random = tmp_path / "model.pth", io.BytesIO(), np.random.default_rng(0)
    torch.save(nn.Linear(9, 9).state_dict(), file, _use_new_zipfile_serialization=new_format)
    errors = 0
    for _ in range(300):
        content = np.frombuffer(file.getvalue(), np.uint8).copy()
        content[random.integers(len(content), size=3)] = random.integers(256, size=3)
        path.write_bytes(content.tobytes())
        try:
            read_state_dict(path)
        except ValueError as error:
            assert "model.pth" in str(error) and "\n" not in str(error)
            errors += 1
    assert errors > 30


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot read the checkpoint .*nowhere\.pth: No such file"):
        read_state_dict(tmp_path / "nowhere.pth")


def without(state: StateDict, prefix: str) -> StateDict:
    return {key: value for key, value in state.items() if not key.startswith(prefix)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: without(state, "decoder.fcn."), "it lacks decoder.fcn.weight, decoder.fcn.bias of the network"),
        (lambda state: without(state, "encoder."), r"it lacks encoder\.resnet\.0\.weight, .* and \d+ more"),
        (
            lambda state: without(state, "encoder.resnet.5.0.bn1.running_var"),
            r"it lacks encoder\.resnet\.5\.0\.bn1\.running_var of the network with a resnet18",
        ),
        (lambda state: state | {"decoder.extra": torch.zeros(1)}, r"decoder\.extra has no place"),
        (
            lambda state: state | {"decoder.init_c.weight": torch.zeros(31, 512)},
            r"decoder\.init_c\.weight is of size \(31, 512\) and must be \(32, 512\)",
        ),
        (
            lambda state: state | {"decoder.embedding.weight": torch.zeros(46, 24)},
            r"its embedding has 46 tokens and the tokenizer .*vocab\.txt has 45",
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(
    change: Any, message: str, state: StateDict, vocab: Path, tmp_path: Path
) -> None:
    torch.save(change(state), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=rf"^cannot convert .*model\.pth: {message}") as error:
        convert_checkpoint(tmp_path / "model.pth", tmp_path / "converted", vocab)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "converted").exists()


def test_the_command_converts_and_reports_errors_in_one_line(
    state: StateDict, vocab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(state, tmp_path / "model.pth")
    assert run_command("convert-original", tmp_path / "model.pth", tmp_path / "converted", "--tokenizer", vocab) == 0
    assert (tmp_path / "converted" / "model.safetensors").exists()
    assert (tmp_path / "converted" / "tokenizer.json").exists()
    capsys.readouterr()
    for wrong in (
        [tmp_path / "nowhere.pth", tmp_path / "converted"],
        [tmp_path / "model.pth", vocab, "--tokenizer", vocab],
        [tmp_path / "model.pth", tmp_path / "converted", "--tokenizer", tmp_path / "no.txt"],
    ):
        assert run_command("convert-original", *wrong) == 2
        captured = capsys.readouterr().err
        assert captured.startswith("error: ")
        assert captured.count("\n") == 1
