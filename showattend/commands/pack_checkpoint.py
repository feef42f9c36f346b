"""Makes a trained captioner ready to be shared: `scripts/pack_checkpoint.py RUN/best OUT_FOLDER`."""

import argparse
import sys

from transformers.utils import logging

from showattend.hub.release import pack_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="folder or Hub id of the captioner")
    parser.add_argument("output_dir", metavar="OUT_FOLDER", help="where to write it, with weights in float16")
    parser.add_argument("--num-beams", "--num_beams", type=int, help="that generate is to use by default")
    parser.add_argument("--length-penalty", "--length_penalty", type=float, help="likewise")
    parser.add_argument(
        "--no-repeat-ngram-size", "--no_repeat_ngram_size", type=int, help="likewise; 3: no three word pieces twice"
    )
    options = parser.parse_args()
    names = ("num_beams", "length_penalty", "no_repeat_ngram_size")
    generation = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    logging.disable_progress_bar()
    try:
        size = pack_checkpoint(options.checkpoint, options.output_dir, **generation)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{options.output_dir}: {size / 1e6:.1f} MB")
