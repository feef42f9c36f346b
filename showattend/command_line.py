"""What the commands share: options, numbers within bounds, errors in one line, exit codes.

The exit code is 2 if something the user gave is wrong and nothing was started, 1 if the run failed, 130 after Ctrl-C.
"""

import argparse
import errno
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from showattend import DEFAULT_CHECKPOINT

DISK_FAILED = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
# The extra of pyproject.toml that brings a module; the other libraries come with the package itself.
EXTRAS = {
    **dict.fromkeys(("accelerate", "datasets", "evaluate", "matplotlib"), "train"),
    **dict.fromkeys(("pycocoevalcap", "tensorboard", "yaml"), "train"),
    "gradio": "app",
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx"),
    **dict.fromkeys(("pyarrow", "ray"), "ray"),
    "timm": "timm",
}

SEARCH = ("num_beams", "length_penalty", "max_length")  # the options of `add_search`
TEXTS = ("--commit-message", "--prefix", "--prompt")  # may be empty; an empty path would mean the current folder


class CommandParser(argparse.ArgumentParser):
    """A parser whose options may be spelt with underscores, and whose errors are one line."""

    def __init__(self, command: str, description: str, **settings: Any) -> None:
        super().__init__(prog=f"showattend {command}", description=description, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        end = arguments.index("--") if "--" in arguments else len(arguments)  # names follow, not options
        for number, argument in enumerate(arguments[:end]):
            arguments[number] = re.sub(r"^--[\w-]+", lambda option: option[0].replace("_", "-"), argument)
        for before, argument in pairwise(["", *arguments]):
            flag, equals, value = argument.partition("=") if argument.startswith("--") else (before, "=", argument)
            if equals and not value and flag not in TEXTS:
                self.error("an argument is empty")
        return super().parse_known_args(arguments, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")

    @contextmanager
    def reporting(self, exit_code: int) -> Iterator[None]:
        """Report an error that the user can act on in one line, with flags for `arguments`, and exit."""
        try:
            yield
        except ModuleNotFoundError as error:
            module = str(error.name).partition(".")[0]
            what, which = ".", "modeling-showattend needs it"
            if extra := EXTRAS.get(module):
                what, which = f'".[{extra}]"', f"the extra [{extra}] of modeling-showattend brings it"
            self.exit(exit_code, f"error: {module} is not installed: pip install -e {what} in a clone; {which}\n")
        except OSError as error:
            system = error.filename is not None  # "[Errno 13] Permission denied: 'file'"
            number = error.errno or getattr(error.__cause__, "errno", None)
            code = 1 if number in DISK_FAILED else exit_code
            self._fail(code, f"{error.filename}: {error.strerror}" if system else str(error))
        except ImportError as error:
            self._fail(exit_code, " ".join(str(error).split()))  # transformers' own have several lines
        except (ValueError, FloatingPointError) as error:
            self._fail(exit_code, str(error))
        except KeyboardInterrupt:
            self.exit(130)  # as the shell says of a program that Ctrl-C ended

    @staticmethod
    def hide_progress_bars() -> None:
        """Hide those of transformers, which loads weights in an instant."""
        from transformers.utils import logging

        logging.disable_progress_bar()

    def _fail(self, exit_code: int, message: str) -> NoReturn:
        self.exit(exit_code, f"error: {self.with_flags(message)}\n")

    def with_flags(self, message: str) -> str:
        """The message with --batch-size where it names `batch_size`, if there is such an option."""

        def flag(argument: re.Match[str]) -> str:
            name = f"--{argument[1].replace('_', '-')}"
            return name if name in self._option_string_actions else argument[0]

        return re.sub(r"`(\w+)`", flag, message)

    def add_checkpoint(self, group: argparse._MutuallyExclusiveGroup | None = None) -> None:
        """Add `--checkpoint`, to a `group` of alternatives if there is one; only in a clone may all be left out."""
        if DEFAULT_CHECKPOINT.is_dir():
            here = DEFAULT_CHECKPOINT.is_relative_to(Path.cwd())
            default = DEFAULT_CHECKPOINT.relative_to(Path.cwd()) if here else DEFAULT_CHECKPOINT
            settings: dict[str, Any] = {"default": str(default), "help": "folder or Hub id; default: %(default)s"}
        else:
            settings = {"help": "the captioner: folder or Hub id"}
            if group is None:
                settings["required"] = True
            else:
                group.required = True
        (group or self).add_argument("--checkpoint", **settings)

    def add_dataset(self, split: bool = False) -> None:
        """Add `--dataset`, the names of its columns and, if asked for, `--split`."""
        self.add_argument("--dataset", required=True, help="folder, file or Hub id; docs/data.md lists the layouts")
        self.add_argument("--image-column", metavar="NAME", help="column of the images, if it has an unusual name")
        self.add_argument("--caption-column", metavar="NAME", help="column of the captions, if it has an unusual name")
        if split:
            self.add_argument("--split", default="validation", choices=["train", "validation", "test"])


def add_search(options: argparse._ActionsContainer) -> None:
    """Add the options of the search, whose defaults are in the checkpoint's generation config."""
    options.add_argument("--num-beams", metavar="N", type=whole_number(1), help="1: greedy search")
    options.add_argument("--length-penalty", metavar="X", type=number(-100, 100), help="above 0: longer captions")
    options.add_argument("--max-length", metavar="N", type=whole_number(2), help="tokens, including [CLS] and [SEP]")


def add_inference(options: argparse._ActionsContainer) -> None:
    """Add the options of how captions are computed."""
    options.add_argument(
        "--batch-size", metavar="N", type=whole_number(1), default=32, help="default: %(default)s images"
    )
    options.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16", "int8"],
        default="auto",
        help="auto, the default: bfloat16 on GPUs that have it, float16 on older ones, float32 on CPUs; of an exported "
        "captioner, the fastest precision that it has",
    )


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given, by name."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def whole_number(low: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from `low`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or int(text[-20:]) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low}")
        if len(text) > 9:
            raise argparse.ArgumentTypeError(f"{text[:20]!r} is too large")
        return int(text)

    return parse


def number(low: float, high: float = float("inf")) -> Callable[[str], float]:
    """The type of an option that is a number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            end = f" to {high:g}" if high < float("inf") else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g}{end}")
        return value

    return parse
