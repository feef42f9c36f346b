"""What the commands share: options, numbers within bounds, errors in one line, exit codes.

The exit code is 2 if something the user gave is wrong and nothing was started, and 1 if the run failed.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from showattend import DEFAULT_CHECKPOINT

INSTALL = 'pip install "modeling-showattend[train,app,onnx]"'


class CommandParser(argparse.ArgumentParser):
    """A parser whose options may be spelt with underscores, and whose errors are one line."""

    def __init__(self, command: str, description: str, **settings: Any) -> None:
        super().__init__(prog=f"showattend {command}", description=description, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        hyphenated = [
            re.sub(r"^--[\w-]+", lambda option: option[0].replace("_", "-"), argument)
            for argument in (sys.argv[1:] if args is None else args)
        ]
        return super().parse_known_args(hyphenated, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")

    @contextmanager
    def reporting(self, exit_code: int) -> Iterator[None]:
        """Report an error that the user can act on in one line, with flags for `arguments`, and exit."""
        try:
            yield
        except ModuleNotFoundError as error:
            self.exit(exit_code, f"error: {error.name} is not installed: {INSTALL}\n")
        except OSError as error:
            system = error.filename is not None  # "[Errno 13] Permission denied: 'file'"
            self._fail(exit_code, f"{error.filename}: {error.strerror}" if system else str(error))
        except (ImportError, ValueError, FloatingPointError) as error:
            self._fail(exit_code, str(error))

    def _fail(self, exit_code: int, message: str) -> NoReturn:
        self.exit(exit_code, "error: " + re.sub(r"`(\w+)`", self._flag, message) + "\n")

    def _flag(self, argument: re.Match[str]) -> str:
        flag = f"--{argument[1].replace('_', '-')}"
        return flag if flag in self._option_string_actions else argument[0]

    def add_checkpoint(self, group: argparse._MutuallyExclusiveGroup | None = None) -> None:
        """`--checkpoint`, or an alternative in `group`; both may be left out only in a clone."""
        if not DEFAULT_CHECKPOINT.is_dir():
            if group is None:
                self.add_argument("--checkpoint", required=True, help="the captioner: folder or Hub id")
            else:
                group.required = True
                group.add_argument("--checkpoint", help="the captioner: folder or Hub id")
            return
        here = DEFAULT_CHECKPOINT.is_relative_to(Path.cwd())
        default = DEFAULT_CHECKPOINT.relative_to(Path.cwd()) if here else DEFAULT_CHECKPOINT
        options = self if group is None else group
        options.add_argument("--checkpoint", default=str(default), help="folder or Hub id; default: %(default)s")

    def add_dataset(self) -> None:
        """`--dataset`, and the names of its columns."""
        self.add_argument("--dataset", required=True, help="folder, file or Hub id; docs/data.md lists the layouts")
        self.add_argument("--image-column", metavar="NAME", help="column of the images, if it has an unusual name")
        self.add_argument("--caption-column", metavar="NAME", help="column of the captions, if it has an unusual name")


def add_search(options: argparse._ActionsContainer) -> None:
    """Options of the search; by default those of the checkpoint's generation config."""
    options.add_argument("--num-beams", metavar="N", type=whole_number(1), help="1: greedy search")
    options.add_argument("--length-penalty", metavar="X", type=number(-100, 100), help="above 0: longer captions")
    options.add_argument("--max-length", metavar="N", type=whole_number(2), help="tokens, [CLS] and [SEP] counted")


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given, by name."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def whole_number(low: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from `low`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low}")
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
