"""Show where the captioner looked: `scripts/visualize_attention.py PHOTO --output FIGURE.{png,svg,gif}`."""

import argparse
import os
import sys
from pathlib import Path

from transformers.utils import logging

from modeling_showattend.image_processing_showattend import load_image
from showattend.attention.figures import FORMATS, draw_attention
from showattend.attention.maps import attend
from showattend.checkpoints import DEFAULT_CHECKPOINT, load_captioner


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Caption a photo and draw where the network looked before every word.",
        epilog="PNG and SVG: the photo, then a panel a word. GIF: a frame a word, marked in the caption below.",
    )
    parser.add_argument("photo", metavar="PHOTO", help="file or URL")
    parser.add_argument("--output", type=Path, help=f"ends in {', '.join(FORMATS)}; default: PHOTO-attention.png, here")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="folder or Hub id")
    parser.add_argument("--num-beams", "--num_beams", type=int, help="1: greedy search; default: the checkpoint's")
    options = parser.parse_args()
    output = options.output or Path(f"{Path(options.photo.split('?')[0]).stem}-attention.png")
    logging.disable_progress_bar()
    try:
        # What is cheap to find out comes before the network is loaded.
        if options.num_beams is not None and options.num_beams < 1:
            raise ValueError(f"--num-beams {options.num_beams} must be at least 1.")
        if output.suffix.lower() not in FORMATS:
            raise ValueError(f"--output {output} must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
        if not os.access(output.parent, os.W_OK):
            raise OSError(f"--output {output}: {output.parent} is no folder that can be written to.")
        photo = load_image(options.photo)
        model, processor = load_captioner(options.checkpoint)
        settings = {} if options.num_beams is None else {"num_beams": options.num_beams}
        attended = attend(model, processor, photo, **settings)
        draw_attention(photo, attended, output)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{output}\t{attended.caption}")
