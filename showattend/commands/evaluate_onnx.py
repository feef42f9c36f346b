"""Measure an exported captioner: `scripts/evaluate_onnx.py FOLDER --dataset FOLDER_OR_ID --checkpoint CHECKPOINT`."""

import argparse
import sys

from transformers.utils import logging


def main() -> None:
    parser = argparse.ArgumentParser(description="The scores, the speed and the size of an exported captioner.")
    parser.add_argument("folder", metavar="FOLDER", help="what scripts/export_onnx.py wrote")
    parser.add_argument("--dataset", required=True, help="folder or Hub id")
    parser.add_argument("--checkpoint", help="the captioner that was exported, to measure torch as well")
    parser.add_argument("--precision", nargs="+", default=["float32", "float16", "int8"])
    parser.add_argument("--split", default="validation", choices=["train", "validation", "test"])
    parser.add_argument("--num-beams", "--num_beams", type=int, help="1: greedy search; default: as exported")
    options = parser.parse_args()
    if options.num_beams is not None and options.num_beams < 1:
        parser.error(f"--num-beams must be at least 1, not {options.num_beams}")
    logging.disable_progress_bar()
    try:
        from showattend.export.onnx_evaluation import evaluate_onnx

        figures = evaluate_onnx(
            options.folder,
            options.dataset,
            options.precision,
            options.checkpoint,
            options.split,
            **({} if options.num_beams is None else {"num_beams": options.num_beams}),
        )
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    columns = list(next(iter(figures.values())))
    print(f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, row in figures.items():
        print(f"| {name} | {' | '.join(f'{row[column]:.1f}' for column in columns)} |")
