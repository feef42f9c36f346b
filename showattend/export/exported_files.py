"""Checks the export in a captioner's `onnx/` folder before it is published."""

import json
from pathlib import Path

from showattend.checkpoints import weights_digest

from .onnx_captioner import SETTINGS_FILE

EXPORT_FOLDER = "onnx"
SCRIPT = "onnx_captioner.py"


def exported_files(checkpoint: str | Path) -> list[Path]:
    """The files of a captioner's export, or none if it has no export.

    Raises:
        OSError: If its settings cannot be read.
        ValueError: If it lacks a file, or was exported from other weights than those in the folder.
    """
    folder = Path(checkpoint) / EXPORT_FOLDER
    if not folder.is_dir():
        return []
    again = f"run `showattend export-onnx {checkpoint}` again, or remove it."
    try:
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        graphs = [name for of_precision in settings["files"].values() for name in of_precision.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"{folder / SETTINGS_FILE} does not hold the settings of an export: {again}") from error
    if settings.get("weights_sha256") != weights_digest(checkpoint):
        raise ValueError(f"{folder} was exported from other weights than {checkpoint} holds: {again}")
    files = [folder / name for name in (SETTINGS_FILE, SCRIPT, *graphs)]
    if absent := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{folder} has no {', '.join(absent)}: {again}")
    return files
