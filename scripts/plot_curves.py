"""Draw a run's curves, or those of a recipe's phases one after the other: `plot_curves.py OUT.png LOG [LOG ...]`."""

import argparse
import json
from itertools import count
from pathlib import Path

from showattend.training.figures import plot_curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", metavar="OUT.png")
    parser.add_argument("logs", metavar="LOG", nargs="+", type=Path, help="a run's log.jsonl")
    options = parser.parse_args()
    epochs = count(1)
    lines = [
        json.loads(line) | {"epoch": next(epochs)} for log in options.logs for line in log.read_text().splitlines()
    ]
    plot_curves(lines, options.out)


if __name__ == "__main__":
    main()
