"""Caption photos: `scripts/caption.py PHOTO`, `scripts/caption.py FOLDER --output captions.jsonl`."""

import argparse
import os
import sys
from collections.abc import Callable

INTERRUPTED = 130  # as the shell says of a program that Ctrl-C ended

EPILOG = """\
A folder stands for all photos in it and below, hidden ones left out; - for names on standard input, one a line or, as
find -print0 writes them, each ended by a NUL. One photo prints its caption, several print a line with path, tab and
caption each. Captions and their order are as the checkpoint's generation config says, where no option says otherwise.
Several GPUs share the photos: accelerate launch scripts/caption.py FOLDER --output captions.jsonl.
The exit code is 1 if a photo failed, 2 if an argument or the checkpoint is wrong, 130 after Ctrl-C.
"""


def number(kind: type[int] | type[float], low: float, high: float = float("inf")) -> Callable[[str], int | float]:
    """The type of an argument that is a number above or equal to `low`."""

    def parse(text: str) -> int | float:
        wanted = f"{'a whole' if kind is int else 'a'} number from {low:g}" + (f" to {high:g}" if high < 1e9 else "")
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return parse


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Caption photos.", epilog=EPILOG)
    parser.add_argument("names", nargs="+", metavar="PHOTO", help="file, folder, pattern, URL or -")
    parser.add_argument("--checkpoint", help="folder or Hub id; default: checkpoints/showattend-resnet50-flickr8k")

    where = parser.add_argument_group("where the captions go")
    where.add_argument(
        "--output",
        metavar="FILE",
        help="FILE.jsonl or FILE.csv: path, caption and score, the mean log probability of its word pieces",
    )
    where.add_argument("--resume", action="store_true", help="go on with --output; what failed is tried again")
    where.add_argument(
        "--alt-text",
        "--alt_text",
        choices=["html", "sidecar"],
        help="html: PHOTO is an HTML file or a folder of them, whose <img> tags get an alt where they have none "
        '(alt="" is one); sidecar: photo.txt beside photo.jpg, where there is none',
    )

    which = parser.add_argument_group("which captions")
    count = number(int, 1)
    which.add_argument("--num-beams", "--num_beams", metavar="N", type=count, help="1: greedy search")
    which.add_argument(
        "--length-penalty",
        "--length_penalty",
        metavar="X",
        type=number(float, -100, 100),
        help="above 0: longer captions",
    )
    which.add_argument(
        "--max-length", "--max_length", metavar="N", type=number(int, 2), help="word pieces, [CLS] and [SEP] counted"
    )
    which.add_argument("--prefix", help='how every caption begins: "a photo of"')
    which.add_argument(
        "--num-captions", "--num_captions", metavar="N", type=count, default=1, help="the best few of each photo"
    )
    which.add_argument("--sample", action="store_true", help="draw the captions at random")
    which.add_argument(
        "--temperature", metavar="X", type=number(float, 1e-3), help="with --sample; below 1: likelier captions"
    )
    which.add_argument(
        "--top-p", "--top_p", metavar="X", type=number(float, 1e-3, 1), help="with --sample; of this mass alone"
    )

    how = parser.add_argument_group("how they are computed")
    how.add_argument(
        "--batch-size", "--batch_size", metavar="N", type=count, default=32, help="photos at a time; default: 32"
    )
    how.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="auto: bfloat16 on GPUs that have it, float16 on older ones, float32 on CPUs",
    )

    options = parser.parse_args()
    if "" in (*options.names, options.checkpoint, options.output):
        parser.error("an argument is empty")
    if "-" in options.names and sys.stdin is None:
        parser.error("- takes names from standard input, which is closed")
    if options.resume and not options.output:
        parser.error("--resume goes on with --output FILE (--alt-text needs none: it keeps every text that is there)")
    if options.alt_text and (options.output or options.num_captions > 1):
        parser.error("--alt-text takes one caption a photo, and no --output")
    if options.sample and (options.num_beams or 1) > 1:
        parser.error("--sample draws captions, --num-beams searches for the best ones: choose one of them")
    if not options.sample and (options.temperature or options.top_p):
        parser.error("--temperature and --top-p need --sample")
    return options


def main() -> int:
    try:
        options = parse_options()
        from showattend.captioning.command import run  # not before: --help need not wait for torch

        code = run(options)
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code > 128:
        os._exit(code)  # a thread may be waiting for a server, or standard output be closed
    return code
