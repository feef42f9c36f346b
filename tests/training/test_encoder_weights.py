import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from showattend.training.encoder_weights import load_encoder_weights

MakeModel = Callable[..., Any]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("classifier", [True, False])
def test_load_encoder_weights(make_model: MakeModel, tmp_path: Path, suffix: str, classifier: bool) -> None:
    resnet = torchvision.models.resnet18(num_classes=7)
    state = {key: value for key, value in resnet.state_dict().items() if classifier or not key.startswith("fc.")}
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = make_model()
    decoder = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    load_encoder_weights(model, path)
    assert torch.equal(model.encoder.resnet[0].weight, resnet.conv1.weight)
    assert torch.equal(model.encoder.resnet[7][1].bn2.running_var, resnet.layer4[1].bn2.running_var)
    assert all(torch.equal(value, decoder[name]) for name, value in model.decoder.state_dict().items())
    model.train()
    assert not any(p.requires_grad for p in model.encoder.parameters())


def test_weights_saved_on_a_gpu(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resnet, model = torchvision.models.resnet18(), make_model()
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save(resnet.state_dict(), tmp_path / "weights.pth")
    load_encoder_weights(model, tmp_path / "weights.pth")
    assert torch.equal(model.encoder.resnet[0].weight, resnet.conv1.weight)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_load_encoder_weights_refuses(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torchvision.models.resnet18().state_dict()

    def refused(path: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message) as error:
            load_encoder_weights(model, path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    with pytest.raises(FileNotFoundError, match=r"missing\.pth do not exist"):
        load_encoder_weights(model, tmp_path / "missing.pth")
    with pytest.raises(ValueError, match="'IMAGENET9' is neither a file of weights nor one of IMAGENET1K_V1"):
        load_encoder_weights(model, "IMAGENET9")

    (tmp_path / "junk.safetensors").write_text("no weights")
    (tmp_path / "junk.pth").write_text("no weights")
    (tmp_path / "damaged.pth").write_bytes(b"\x80\x02\x85.")  # a pickle that takes from its empty stack
    refused(tmp_path / "junk.safetensors", "not a readable file of tensors")
    refused(tmp_path / "junk.pth", "not a readable file of tensors")
    refused(tmp_path / "damaged.pth", "not a readable file of tensors")
    wrong: dict[str, Any] = {
        "resnet34": torchvision.models.resnet34().state_dict(),
        "resnet50": torchvision.models.resnet50().state_dict(),
        "nested": {"state_dict": state},
        "part": dict(list(state.items())[:20]),
        "list": [1, 2],
        "numbers": dict.fromkeys(state, 0),
    }
    for name, content in wrong.items():
        torch.save(content, tmp_path / f"{name}.pth")
        refused(tmp_path / f"{name}.pth", "does not hold the torchvision state dict of a resnet18")

    marker = tmp_path / "executed"
    torch.save({"conv1.weight": Malicious(marker)}, tmp_path / "malicious.pth")
    (tmp_path / "malicious.bin").write_bytes(pickle.dumps(Malicious(marker), protocol=2))
    refused(tmp_path / "malicious.pth", "not a readable file of tensors")
    refused(tmp_path / "malicious.bin", "not a readable file of tensors")
    assert not marker.exists()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_load_encoder_weights_without_network(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (OSError("no route"), RuntimeError("invalid hash value")):

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
        with pytest.raises(OSError, match="IMAGENET1K_V1 weights of resnet18 could not be downloaded"):
            load_encoder_weights(make_model())
