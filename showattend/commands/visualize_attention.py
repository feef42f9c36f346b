"""Draw where the captioner looked: `showattend visualize-attention IMAGE --output FIGURE.{png,svg,gif}`."""

import os
from collections.abc import Sequence
from pathlib import Path

from showattend.command_line import CommandParser, given, whole_number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        "visualize-attention",
        "Caption an image and draw where the network looked before every word.",
        epilog="PNG and SVG: the image, then a panel per word. GIF: a frame per word, marked in the caption below.",
    )
    parser.add_argument("image", metavar="IMAGE", help="file or URL")
    parser.add_argument(
        "--output", type=Path, help="FIGURE.png, .svg or .gif; default: IMAGE-attention.png in the current folder"
    )
    parser.add_checkpoint()
    parser.add_argument(
        "--num-beams", metavar="N", type=whole_number(1), help="1: greedy search; default: the checkpoint's"
    )
    options = parser.parse_args(arguments)
    output = options.output or Path(f"{Path(options.image.split('?')[0]).stem}-attention.png")
    with parser.reporting(2):
        parser.hide_progress_bars()
        from modeling_showattend.image_processing_showattend import load_image
        from showattend.attention.figures import FORMATS, draw_attention
        from showattend.attention.maps import attend
        from showattend.checkpoints import load_captioner

        if output.suffix.lower() not in FORMATS:
            raise ValueError(f"--output {output} must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
        if not os.access(output.parent, os.W_OK):
            raise OSError(f"--output {output}: {output.parent} is not a folder that can be written to.")
        image = load_image(options.image)
        model, processor = load_captioner(options.checkpoint)
        attended = attend(model, processor, image, **given(options, "num_beams"))
        draw_attention(image, attended, output)
    print(f"{output}\t{attended.caption}")
    return 0
