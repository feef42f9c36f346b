"""Score a captioner: `showattend evaluate --checkpoint FOLDER --dataset FOLDER_OR_ID --output-dir OUT`."""

import json
from collections.abc import Sequence
from pathlib import Path

from showattend.command_line import CommandParser, add_search, given, whole_number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser("evaluate", "Caption a split of a dataset and score the captions.")
    parser.add_checkpoint()
    parser.add_dataset()
    parser.add_argument("--output-dir", required=True, help="for captions.json and figures.json")
    parser.add_argument("--split", default="validation", choices=["train", "validation", "test"])
    parser.add_argument("--batch-size", metavar="N", type=whole_number(1), default=32)
    add_search(parser)
    parser.add_argument(
        "--generation", type=json.loads, default={}, help="more settings, as JSON: '{\"no_repeat_ngram_size\": 3}'"
    )
    parser.add_argument("--model-card", type=Path, help="a README.md to write the figures into; made if absent")
    options = parser.parse_args(arguments)
    with parser.reporting(2):
        from showattend.evaluation.evaluate import evaluate_checkpoint
        from showattend.hub.model_card import add_evaluation

        figures = evaluate_checkpoint(
            options.checkpoint,
            options.dataset,
            options.output_dir,
            split=options.split,
            batch_size=options.batch_size,
            **given(options, "num_beams", "length_penalty", "max_length", "image_column", "caption_column"),
            **options.generation,
        )
    if not figures:  # not the main process
        return 0
    if options.model_card:
        with parser.reporting(1):
            add_evaluation(options.model_card, figures)
    print("  ".join(f"{name} {value:.1f}" for name, value in (figures["metrics"] | figures["statistics"]).items()))
    return 0
