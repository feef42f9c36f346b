"""Score a captioner: `scripts/evaluate.py --checkpoint FOLDER --dataset FOLDER_OR_ID --output-dir OUT`."""

import argparse
import json
import sys
from pathlib import Path

from showattend.checkpoints import DEFAULT_CHECKPOINT
from showattend.evaluation.evaluate import evaluate_checkpoint
from showattend.hub.model_card import add_evaluation


def main() -> None:
    parser = argparse.ArgumentParser(description="Caption a split of a dataset and score the captions.")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="folder or Hub id")
    parser.add_argument("--dataset", required=True, help="folder or Hub id")
    parser.add_argument("--output-dir", "--output_dir", required=True, help="for captions.json and figures.json")
    parser.add_argument("--split", default="validation", choices=["train", "validation", "test"])
    parser.add_argument("--batch-size", "--batch_size", type=int, default=32)
    parser.add_argument("--num-beams", "--num_beams", type=int, help="1: greedy search")
    parser.add_argument("--length-penalty", "--length_penalty", type=float, help="above 0: longer captions")
    parser.add_argument("--max-length", "--max_length", type=int, help="word pieces, [CLS] and [SEP] counted")
    parser.add_argument(
        "--generation", type=json.loads, default={}, help="more settings, as JSON: '{\"no_repeat_ngram_size\": 3}'"
    )
    parser.add_argument(
        "--model-card", "--model_card", type=Path, help="a README.md to write the figures into; made if absent"
    )
    options = parser.parse_args()
    named = {"num_beams": options.num_beams, "length_penalty": options.length_penalty, "max_length": options.max_length}
    try:
        figures = evaluate_checkpoint(
            options.checkpoint,
            options.dataset,
            options.output_dir,
            split=options.split,
            batch_size=options.batch_size,
            **{name: value for name, value in named.items() if value is not None},
            **options.generation,
        )
        if figures and options.model_card:
            add_evaluation(options.model_card, figures)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if figures:
        print("  ".join(f"{name} {value:.1f}" for name, value in (figures["metrics"] | figures["statistics"]).items()))
