"""Score a captioner: `showattend evaluate --checkpoint FOLDER --dataset FOLDER_OR_ID --output-dir OUT`."""

import json
from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from showattend.command_line import SEARCH, CommandParser, add_search, given, whole_number


def json_object(text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ArgumentTypeError(f"""{text!r} is not a JSON object such as '{{"no_repeat_ngram_size": 3}}'""")
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser("evaluate", "Score any captioner of transformers, or captions.")
    source = parser.add_mutually_exclusive_group()
    parser.add_checkpoint(source)
    source.add_argument(
        "--captions",
        metavar="FILE",
        help="score these captions instead: COCO results (.json), or what showattend caption writes (.jsonl, .csv)",
    )
    parser.add_dataset(split=True)
    parser.add_argument("--output-dir", required=True, help="for captions.json and figures.json")
    parser.add_argument(
        "--compare",
        metavar="FILE",
        help="another evaluation's figures.json, or captions as --captions takes: print the paired differences",
    )
    how = parser.add_argument_group("how a checkpoint generates")
    how.add_argument("--batch-size", metavar="N", type=whole_number(1), help="images at a time; default: 32")
    how.add_argument("--prompt", metavar="TEXT", help="given with every image; the caption is scored without it")
    add_search(how)
    how.add_argument(
        "--generation", metavar="JSON", type=json_object, help="more settings: '{\"no_repeat_ngram_size\": 3}'"
    )
    how.add_argument("--model-card", type=Path, help="a README.md to write the figures into; created if absent")
    options = parser.parse_args(arguments)
    search = given(options, *SEARCH)
    generation = options.generation or {}
    if clash := sorted(generation.keys() & (vars(options).keys() - SEARCH | search.keys())):
        parser.error(f"--generation cannot hold {clash[0]}: --{clash[0].replace('_', '-')} is an option")
    shared = given(options, "dataset", "output_dir", "split", "compare", "image_column", "caption_column")
    if options.captions:
        for name in (*search, *given(options, "batch_size", "prompt", "generation", "model_card")):
            parser.error(f"--{name.replace('_', '-')} is for a checkpoint, and --captions takes none")
    with parser.reporting(2):
        from showattend.evaluation.scoring import evaluate_captions, summary

        if options.captions:
            figures = evaluate_captions(options.captions, **shared)
        else:
            from accelerate import PartialState

            from showattend.evaluation.evaluate import evaluate_checkpoint

            settings = given(options, "batch_size", "prompt") | search
            figures = evaluate_checkpoint(options.checkpoint, **shared, **settings, **generation)
            PartialState().destroy_process_group()  # else a process that ends before the others may crash
    if not figures:  # not the main process
        return 0
    if options.model_card:
        with parser.reporting(1):
            from showattend.hub.model_card import add_evaluation

            add_evaluation(options.model_card, figures)
    print(summary(figures))
    return 0
