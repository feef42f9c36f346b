"""Train a captioner: `showattend train --dataset FOLDER_OR_ID --output-dir RUN --preset tuned`."""

import logging
from collections.abc import Sequence

from showattend.training.settings import parse_settings, settings_parser


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it logs every file of every checkpoint
    parser = settings_parser()
    with parser.reporting(2):
        settings = parse_settings(arguments)
        from showattend.training.trainer import train
    with parser.reporting(1):
        best = train(settings)
    print(f"The best model is in {best}.")
    return 0
