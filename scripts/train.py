"""Train a captioner: `accelerate launch scripts/train.py --dataset FOLDER_OR_ID --output-dir RUN --preset tuned`."""

import logging
import sys
from pathlib import Path

from modeling_showattend.recipe import parse_recipe
from modeling_showattend.training import train

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it names every file of every checkpoint
    try:
        recipe = parse_recipe(sys.argv[1:], CONFIGS)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        best = train(recipe)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"The best model is in {best}.")


if __name__ == "__main__":
    main()
