"""Caption photos: `showattend caption PHOTO`, `showattend caption FOLDER --output captions.jsonl`."""

import argparse
import os
import sys
from collections.abc import Sequence

from showattend.command_line import CommandParser, add_search, number, whole_number

INTERRUPTED = 130  # as the shell says of a program that Ctrl-C ended

EPILOG = """\
A folder stands for all photos in it and below, hidden ones left out; - for names on standard input, one a line or, as
find -print0 writes them, each ended by a NUL. One photo prints its caption, several print a line with path, tab and
caption each. Captions and their order are as the checkpoint's generation config says, where no option says otherwise.
Several GPUs share the photos: accelerate launch -m showattend caption FOLDER --output captions.jsonl.
The exit code is 1 if a photo failed, 2 if an argument or the checkpoint is wrong, 130 after Ctrl-C.
"""


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("caption", "Caption photos.", epilog=EPILOG)
    parser.add_argument("names", nargs="+", metavar="PHOTO", help="file, folder, pattern, URL or -")
    parser.add_checkpoint()

    where = parser.add_argument_group("where the captions go")
    where.add_argument(
        "--output",
        metavar="FILE",
        help="FILE.jsonl or FILE.csv: path, caption and score, the mean log probability of its tokens",
    )
    where.add_argument("--resume", action="store_true", help="go on with --output; what failed is tried again")
    where.add_argument(
        "--alt-text",
        choices=["html", "sidecar"],
        help="html: PHOTO is an HTML file or a folder of them, whose <img> tags get an alt where they have none "
        '(alt="" is one); sidecar: photo.txt beside photo.jpg, where there is none',
    )

    which = parser.add_argument_group("which captions")
    count = whole_number(1)
    add_search(which)
    which.add_argument("--prefix", help='how every caption begins: "a photo of"')
    which.add_argument("--num-captions", metavar="N", type=count, default=1, help="the best few of each photo")
    which.add_argument("--sample", action="store_true", help="draw the captions at random")
    which.add_argument(
        "--temperature", metavar="X", type=number(1e-3), help="with --sample; below 1: likelier captions"
    )
    which.add_argument("--top-p", metavar="X", type=number(1e-3, 1), help="with --sample; of this mass alone")

    how = parser.add_argument_group("how they are computed")
    how.add_argument("--batch-size", metavar="N", type=count, default=32, help="photos at a time; default: 32")
    how.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="auto: bfloat16 on GPUs that have it, float16 on older ones, float32 on CPUs",
    )

    options = parser.parse_args(arguments)
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


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = parse_options(arguments)
        from showattend.captioning.command import run  # not before: --help need not wait for torch

        code = run(options)
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code > 128:
        os._exit(code)  # a thread may be waiting for a server, or standard output be closed
    return code
