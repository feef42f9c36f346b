"""Moves a captioner part of the way to another: `scripts/mix_checkpoints.py START END SHARE OUT_FOLDER`."""

import argparse
import sys

from transformers.utils import logging

from modeling_showattend.mixing import mix_checkpoints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("start", help="folder or Hub id of a captioner")
    parser.add_argument("end", help="of one that was trained from it")
    parser.add_argument("share", type=float, help="0: the start, 1: the end")
    parser.add_argument("output_dir", metavar="OUT_FOLDER")
    options = parser.parse_args()
    logging.disable_progress_bar()
    try:
        mix_checkpoints(options.start, options.end, options.share, options.output_dir)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{options.output_dir}: {options.share:.0%} of the way from {options.start} to {options.end}")


if __name__ == "__main__":
    main()
