"""Train a captioner: `accelerate launch -m showattend train --dataset FOLDER_OR_ID --output-dir RUN --preset tuned`."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from showattend import training
from showattend.command_line import CommandParser

PRESETS = Path(training.__file__).parent / "presets"


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it logs every file of every checkpoint
    with CommandParser("train", "Train a captioner.").reporting(2):
        from showattend.training.settings import parse_settings, settings_parser

        settings = parse_settings(sys.argv[1:] if arguments is None else arguments, PRESETS)
    with settings_parser().reporting(1):
        from showattend.training.trainer import train

        best = train(settings)
    print(f"The best model is in {best}.")
    return 0
