"""Turns a checkpoint of the write-up's training code into a folder for transformers' Auto classes."""

import argparse
import sys

from showattend.hub.conversion import convert_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", metavar="MODEL.pth", help="the saved state_dict")
    parser.add_argument("output_dir", metavar="OUT_FOLDER", help="folder to save model and processor to")
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        default="bert-base-uncased",
        help="Hub id, folder or vocab.txt of the vocabulary it was trained with (default: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        convert_checkpoint(arguments.checkpoint, arguments.output_dir, arguments.tokenizer)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"Saved model and processor to {arguments.output_dir}.")
