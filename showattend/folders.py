"""Replaces folders and files atomically: a new version is written beside the old one, then replaces it."""

import errno
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from safetensors import SafetensorError

logger = logging.getLogger(__name__)

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # what open, torch.save and safetensors raise on a full disk


def check_replaceable(folder: Path) -> None:
    """Keep [`replacing`] from deleting what is not ours.

    Raises:
        FileExistsError: If `folder`, or its neighbours NAME.new and NAME.old, hold anything but a captioner.
    """
    for place in (folder, folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")):
        is_ours = (place / "config.json").is_file() and (place / "model.safetensors").is_file()
        if place.exists() and not is_ours and not (place.is_dir() and not any(place.iterdir())):
            raise FileExistsError(f"{place} holds no captioner and would be deleted: name another folder.")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder for all processes to write into. On success it becomes `folder`; on failure it is deleted.

    Raises:
        OSError: If the new version cannot be written, for example on a full disk. The old version stays.
    """
    state = PartialState()
    temporary = folder.with_name(folder.name + ".new")
    previous = folder.with_name(folder.name + ".old")
    try:
        if state.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        state.wait_for_everyone()
        yield temporary
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, WRITE_ERRORS):
            raise
        failure = OSError(f"{folder} could not be written ({error}); its last complete version is intact.")
        failure.errno = error.errno if isinstance(error, OSError) else errno.EIO
        raise failure from error
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(previous, ignore_errors=True)
        if folder.exists():
            folder.rename(previous)
        temporary.rename(folder)
        shutil.rmtree(previous, ignore_errors=True)
    state.wait_for_everyone()


def keep_others(old: Path, new: Path) -> None:
    """Copy what only `old` holds, such as a model card, an export or `.git`, and say that it may not fit `new`."""
    others = [path for path in sorted(old.iterdir()) if not (new / path.name).exists()] if old.is_dir() else []
    for path in others:
        if path.is_dir():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name)
    if others:
        names = ", ".join(path.name for path in others)
        logger.warning("%s keeps %s: check that they fit the new weights.", old, names)


def write_file(path: Path, text: str) -> None:
    """Write a file of which a kill or a full disk leaves a complete version."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)


def recover(folder: Path) -> bool:
    """Finish what a kill interrupted in [`replacing`], and return whether there is a complete `folder`."""
    state = PartialState()
    previous = folder.with_name(folder.name + ".old")
    if state.is_main_process and not folder.exists() and previous.exists():
        previous.rename(folder)
    state.wait_for_everyone()
    return folder.exists()
