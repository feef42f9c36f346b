"""Caption photos: `showattend caption PHOTO`, `showattend caption FOLDER --output captions.jsonl`."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from showattend.command_line import SEARCH, CommandParser, add_inference, add_search, given, number, whole_number

EPILOG = """\
PHOTO may also be a folder, for all photos in it and below, except hidden ones; or -, for names on standard input, one
per line or, as find -print0 writes them, each ended by a NUL. One photo's caption is printed alone; of several photos,
each gets a line: path, tab, caption. Generation options that are left out come from the checkpoint's generation config.
With a folder that export-onnx wrote, --checkpoint FOLDER needs no torch and is several times as fast on a CPU.
The exit code is 1 if a photo failed, 2 if an argument or the checkpoint is wrong, 130 after Ctrl-C.
"""


def parse_options(parser: CommandParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser.add_argument("names", nargs="+", metavar="PHOTO", help="file, folder, pattern, URL or -")
    parser.add_checkpoint()

    where = parser.add_argument_group("where the captions go")
    where.add_argument(
        "--output",
        metavar="FILE",
        help="FILE.jsonl or FILE.csv: path, caption, score (mean log probability of a token)",
    )
    where.add_argument("--resume", action="store_true", help="continue --output; failed images are tried again")
    where.add_argument(
        "--alt-text",
        choices=["html", "sidecar"],
        help="html: PHOTO is an HTML file or a folder of them, whose <img> tags get an alt where they have none "
        '(alt="" is one); sidecar: photo.txt beside photo.jpg, where there is none',
    )

    which = parser.add_argument_group("which captions")
    add_search(which)
    which.add_argument("--prefix", help='how every caption begins: "a photo of"')
    which.add_argument("--num-captions", metavar="N", type=whole_number(1), default=1, help="per photo, best first")
    which.add_argument("--sample", action="store_true", help="draw the captions at random")
    which.add_argument(
        "--temperature", metavar="X", type=number(1e-3), help="with --sample; below 1: likelier captions"
    )
    which.add_argument(
        "--top-p", metavar="X", type=number(1e-3, 1), help="with --sample: probability mass of the tokens to draw from"
    )

    how = parser.add_argument_group("how they are computed")
    add_inference(how)

    options = parser.parse_args(arguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        parser.error("caption runs as a single process: start it without accelerate launch or torchrun")
    if "-" in options.names and sys.stdin is None:
        parser.error("- takes names from standard input, which is closed")
    if sys.stdout is None and not options.output and not options.alt_text:
        parser.error("the captions go to standard output, which is closed: name a file with --output")
    if options.resume and not options.output:
        parser.error("--resume continues --output FILE (--alt-text needs none: it keeps every text that is there)")
    if options.alt_text and (options.output or options.num_captions > 1):
        parser.error("--alt-text takes one caption per photo, and no --output")
    if options.sample and (options.num_beams or 1) > 1:
        parser.error("--sample draws captions, --num-beams searches for the best ones: choose one of them")
    if not options.sample and options.num_beams and options.num_beams < options.num_captions:
        parser.error(
            f"--num-captions {options.num_captions} needs {options.num_captions} or more --num-beams, "
            f"not {options.num_beams}"
        )
    if not options.sample and (options.temperature or options.top_p):
        parser.error("--temperature and --top-p need --sample")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    parser = CommandParser("caption", "Caption photos.", epilog=EPILOG)
    options = parse_options(parser, arguments)
    with parser.reporting(2):
        work, failed = prepare(options)
    code = run(work, options, failed)
    if code > 128:
        os._exit(code)  # a thread may be waiting for a server, or standard output be closed
    return code


def prepare(options: argparse.Namespace) -> tuple[Callable[[], None], Any]:
    """Load and check everything; return what remains to be done, and the [`Failures`] that it will count."""
    from showattend.captioning import command
    from showattend.captioning.alt_text import has_sidecar
    from showattend.captioning.exported import is_exported
    from showattend.captioning.loading import load
    from showattend.captioning.outputs import CaptionFile, check_output, recover
    from showattend.captioning.stream import caption_stream

    if options.output:
        check_output(options.output, options.resume)
    names = options.names
    if not is_exported(options.checkpoint):
        silence_transformers()
    captioner = load(
        options.checkpoint,
        options.dtype,
        options.prefix,
        options.num_captions,
        options.sample,
        **given(options, *SEARCH, "temperature", "top_p"),
    )
    stream = partial(caption_stream, captioner, batch_size=options.batch_size)
    failed = command.Failures()
    caption_images = partial(command.caption_images, names, stream, failed=failed)
    if options.alt_text == "html":
        return partial(command.caption_pages, names, stream, failed), failed
    if options.alt_text == "sidecar":
        return partial(caption_images, keep=command.write_beside(names, failed), skip=has_sidecar), failed
    if not options.output:
        return partial(caption_images, keep=command.print_captions(names)), failed
    done = recover(options.output, options.num_captions)
    file = CaptionFile(options.output)

    def append_to_file() -> None:
        with closing(file):
            caption_images(keep=command.append_to(file), skip=done.__contains__)

    return append_to_file, failed


def silence_transformers() -> None:
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # else it warns of each attempt to reach the Hub


def run(work: Callable[[], None], options: argparse.Namespace, failed: Any) -> int:
    """The exit code: 1 if an image failed or the captions could not be written, 141 if nobody reads them, 130, or 0."""
    from showattend.captioning.console import console, logger

    warnings.filterwarnings("ignore", module="PIL")  # about large photos, which are read all the same, and odd metadata
    with console():
        try:
            work()
        except BrokenPipeError:
            return 141  # as after SIGPIPE
        except KeyboardInterrupt:
            return 130  # as after SIGINT
        except MemoryError:
            logger.error(
                "not enough memory for %d photos at a time: lower --batch-size or --num-beams", options.batch_size
            )
            return 1
        except OSError as error:
            logger.error("cannot write %s: %s", options.output or "standard output", error.strerror or error)
            return 1
    return int(failed.count > 0)
