"""What `scripts/caption.py` does once its arguments are read: names in, captions out, as one stream."""

import argparse
import io
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby, islice
from typing import IO, Any

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging

from showattend.checkpoints import load_captioner

from .alt_text import ImageTag, Page, find_pages, has_sidecar, write_sidecar
from .console import Console
from .generate import Caption, best_device, caption_stream, check_settings, fastest_dtype
from .inputs import is_one_file, list_files, photo_suffixes, read_names
from .outputs import CaptionFile, Paths, check_output, merge_parts, part_of, recover
from .processes import Processes

GENERATION = ("num_beams", "length_penalty", "max_length", "temperature", "top_p")


def run(options: argparse.Namespace) -> int:
    """Caption what the options name, the way they say.

    Returns:
        The exit code: 0; 1 if a photo failed or the captions could not be written; 2 if nothing was begun, because an
        argument or the checkpoint is wrong; 141 if nobody reads the captions any more.
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # of each attempt to reach the Hub
    warnings.filterwarnings("ignore", module="PIL")  # of large photos, which are read, and of odd metadata
    console = Console()
    try:
        captioning = _Captioning(options, console)
    except (OSError, ValueError) as error:
        console.error(error)
        return 2
    try:
        return captioning.run()
    except BrokenPipeError:
        return 141  # as if by SIGPIPE
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):  # a CPU's
            raise
        console.error(
            f"the memory does not hold {options.batch_size} photos at a time: lower --batch-size or --num-beams"
        )
        return 1
    except OSError as error:
        console.error(f"cannot write {options.output or 'standard output'}: {error.strerror or error}")
        return 1
    finally:
        console.close()


class _Captioning:
    """All that a run needs, ready to begin.

    Raises:
        OSError, ValueError: If it cannot begin.
    """

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options, self.console = options, console
        self.processes = Processes()
        self.is_first = self.processes.index == 0
        if options.output:
            self.processes.first_does(lambda: check_output(options.output, options.resume))
        elif self.processes.count > 1 and not options.alt_text:
            raise ValueError("several processes would print captions in no order: name a file with --output")
        self.stream = _load(options)
        if options.output:
            self.done: Paths = self.processes.first_does(lambda: recover(options.output, options.num_captions))
            shared = self.processes.count > 1
            self.file = CaptionFile(part_of(options.output, self.processes.index) if shared else options.output)

    def run(self) -> int:
        if self.options.alt_text == "html":
            self._caption_pages()
        elif self.options.alt_text == "sidecar":
            self._caption_photos(has_sidecar, self._write_sidecar)
        elif self.options.output:
            self._caption_photos(self.done.__contains__, self._append)
            self.file.close()
        else:
            self._caption_photos(lambda name: False, self._print)
        errors = sum(self.processes.gather(self.console.errors))
        if self.options.output and self.processes.count > 1:
            self.processes.first_does(self._merge)
        return int(errors > 0)

    def _merge(self) -> None:
        merge_parts(self.options.output, self.options.num_captions, self.done, expected=self.processes.count)

    # --- photos ---

    def _caption_photos(self, has: Callable[[str], bool], keep: Callable[[int, str, list[Caption]], None]) -> None:
        """Caption this process's share of the photos, and hand each, with its place among all, to `keep`.

        Args:
            has: Whether a photo has its captions already.
        """
        skipped = 0

        def photos() -> Iterator[tuple[tuple[int, str], str]]:
            nonlocal skipped
            for index, name in self._share(list_files(self._names(), photo_suffixes(), self._report)):
                if has(name):
                    skipped += 1
                else:
                    yield (index, name), name

        self._show_bar("photos", lambda: list_files(self.options.names, photo_suffixes(), _ignore))
        for (index, name), outcome in self.stream(photos()):
            if isinstance(outcome, Exception):
                self.console.error(outcome if name in str(outcome) else f"{name}: {outcome}")
            else:
                keep(index, name, outcome)
            self.console.move_bar(index + 1)
        if skipped:
            self.console.note(f"{skipped} of the photos had their captions already")

    def _print(self, index: int, name: str, captions: list[Caption]) -> None:
        for caption in captions:
            self.console.print(*([] if self._is_one else [name]), caption.text)

    def _append(self, index: int, name: str, captions: list[Caption]) -> None:
        place = {"index": index} if self.processes.count > 1 else {}
        self.file.append(
            {"path": name, "caption": caption.text, "score": round(caption.score, 4), **place} for caption in captions
        )

    def _write_sidecar(self, index: int, name: str, captions: list[Caption]) -> None:
        try:
            write_sidecar(name, captions[0].text)
        except OSError as error:
            self.console.error(error)
        else:
            self._print(index, name, captions)

    # --- pages ---

    def _caption_pages(self) -> None:
        """Give the images of this process's share of the HTML files an `alt` where they have none."""

        def images() -> Iterator[tuple[tuple[int, Page, ImageTag], str | IO[bytes]]]:
            for index, (path, root) in self._share(find_pages(self._names(), self._report)):
                try:
                    page = Page(path)
                except OSError as error:
                    self.console.error(error)
                    continue
                for tag in page.tags:
                    try:
                        yield (index, page, tag), page.source(tag, root)
                    except ValueError as error:
                        self.console.error(f"{path}:{tag.line}: {error}")

        self._show_bar("pages", lambda: find_pages(self.options.names, _ignore))
        for (index, page), outcomes in groupby(self.stream(images()), key=lambda pair: pair[0][:2]):
            captions: list[tuple[ImageTag, str]] = []
            for (_, _, tag), outcome in outcomes:
                if isinstance(outcome, Exception):
                    self.console.error(f"{page.path}:{tag.line}: {outcome}")
                else:
                    captions.append((tag, outcome[0].text))
            try:
                page.write(captions)
            except OSError as error:
                self.console.error(error)
            else:
                for tag, caption in captions:
                    self.console.print(f"{page.path}:{tag.line}", caption)
            self.console.move_bar(index + 1)

    # --- names ---

    @property
    def _is_one(self) -> bool:
        return len(self.options.names) == 1 and is_one_file(self.options.names[0])

    def _names(self) -> Iterator[str]:
        """The names on the command line, with those on standard input in the place of `-`."""
        stdin: Any = sys.stdin and sys.stdin.buffer
        if "-" in self.options.names and self.processes.count > 1:  # all of them have the same standard input
            stdin = io.BytesIO(self.processes.first_does(stdin.read))
        for name in self.options.names:
            if name == "-":
                yield from read_names(stdin)
            else:
                yield name

    def _share(self, everything: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        return islice(enumerate(everything), self.processes.index, None, self.processes.count)

    def _report(self, message: str) -> None:
        if self.is_first:  # all processes list the same files
            self.console.error(message)

    def _show_bar(self, unit: str, everything: Callable[[], Iterable[Any]]) -> None:
        if self.is_first and not self._is_one:
            known = "-" not in self.options.names
            self.console.show_bar(unit, (lambda: sum(1 for _ in everything())) if known else None)


def _ignore(message: str) -> None:
    pass


def _load(options: argparse.Namespace) -> Callable[..., Iterator[tuple[Any, list[Caption] | Exception]]]:
    """[`caption_stream`] with the checkpoint and all settings."""
    device = best_device()
    dtype = fastest_dtype(device) if options.dtype == "auto" else getattr(torch, options.dtype)
    model, processor = load_captioner(options.checkpoint, dtype)
    generation = {name: getattr(options, name) for name in GENERATION if getattr(options, name) is not None}
    if options.num_captions > 1:
        generation["num_return_sequences"] = options.num_captions
    if options.sample:
        generation["do_sample"] = True
    generation = check_settings(model.generation_config, processor, options.prefix, **generation)
    model.to(device)  # type: ignore[arg-type]
    return partial(caption_stream, model, processor, batch_size=options.batch_size, prefix=options.prefix, **generation)
