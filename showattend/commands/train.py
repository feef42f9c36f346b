"""Train a captioner: `accelerate launch scripts/train.py --dataset FOLDER_OR_ID --output-dir RUN --preset tuned`."""

import logging
import sys
from pathlib import Path

from showattend import training
from showattend.training.settings import parse_recipe
from showattend.training.trainer import train

PRESETS = Path(training.__file__).parent / "presets"


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it names every file of every checkpoint
    try:
        recipe = parse_recipe(sys.argv[1:], PRESETS)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        best = train(recipe)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"The best model is in {best}.")
