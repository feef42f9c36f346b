"""Mixes captioners' weights: `scripts/mix_checkpoints.py OUT_FOLDER START END SHARE [END SHARE ...]`."""

import argparse
import sys
from pathlib import Path

from transformers.utils import logging

from showattend.hub.averaging import mix_checkpoints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output_dir", metavar="OUT_FOLDER")
    parser.add_argument("start", metavar="START", help="folder or Hub id of a captioner")
    parser.add_argument(
        "ends", metavar="END SHARE", nargs="+", help="of one that was trained from it, and its share: 0 to 1"
    )
    options = parser.parse_args()
    logging.disable_progress_bar()
    try:
        shares = read_shares(options.ends)
        mix_checkpoints(options.start, shares, options.output_dir)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    parts = ", ".join(f"{share:.0%} of {end}" for end, share in shares.items())
    print(f"{options.output_dir}: {options.start}, with {parts}")


def read_shares(ends: list[str]) -> dict[str | Path, float]:
    try:
        return {end: float(share) for end, share in zip(ends[::2], ends[1::2], strict=True)}
    except ValueError:
        raise ValueError(f"{' '.join(ends)}: after each captioner comes its share, a number from 0 to 1.") from None
