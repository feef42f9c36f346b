"""Prepares a run's output folder, and finds out early what would otherwise fail after hours."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from showattend.checkpoints import weights_digest
from showattend.folders import write_file
from showattend.metrics import score_captions

from .settings import TrainingSettings

# Settings that may differ when a run resumes: locations, the length of the run, reporting.
MAY_CHANGE = {
    *("output_dir", "preset", "cache_dir", "epochs", "early_stopping_patience", "num_workers", "report_to"),
    "checkpoint_every",
}
FREE_BYTES = 2e9  # two checkpoints and two models at once, with their optimizer


def run_identity(settings: TrainingSettings, num_processes: int) -> dict[str, Any]:
    """What must stay the same when a run resumes.

    Steps are counted in batches of all processes, and averages and generated captions depend on the start's weights.
    """
    identity = dataclasses.asdict(settings) | {"num_processes": num_processes}
    for name in ("init_from", "average_with"):
        folder = getattr(settings, name)
        if folder is not None and (Path(folder) / "model.safetensors").is_file():
            identity[f"weights_of_{name}"] = weights_digest(folder)
    return identity


def prepare_output_folder(output: Path, run: dict[str, Any]) -> None:
    """Write `settings.json`, and find out early what would otherwise fail after hours.

    Args:
        run: The [`run_identity`], which must match that of the run in the folder if there is one to resume.

    Raises:
        OSError: If the folder cannot be written or the disk is full.
        ValueError: If the folder holds a run with other settings.
    """
    resumable = any((output / name).exists() for name in ("checkpoint", "checkpoint.old", "generated.jsonl"))
    if resumable:
        earlier = json.loads((output / "settings.json").read_text())
        # A setting that is newer than the run had its default.
        earlier = {name: getattr(TrainingSettings, name, None) for name in run} | earlier
        changed = [name for name in run if run[name] != earlier[name] and name not in MAY_CHANGE]
        if changed:
            raise ValueError(
                f"{output} holds a run with another {', '.join(changed)}: resume it with its settings, or name "
                "another `output_dir`."
            )
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_file(output / "settings.json", json.dumps(run, indent=2) + "\n")
    except OSError as error:
        raise OSError(f"`output_dir` {output} cannot be written: {error.strerror or error}.") from error
    free = shutil.disk_usage(output).free
    if free < FREE_BYTES:
        raise OSError(f"`output_dir` {output} has {free / 1e9:.1f} GB free; a run needs {FREE_BYTES / 1e9:.0f} GB.")


def check_metric(name: str) -> None:
    """Score a caption as a test: METEOR and SPICE need programs that may be missing."""
    if name in ("meteor", "spice") and name not in score_captions({"": "a dog"}, {"": ["a dog"]}):
        raise ValueError(
            f"`metric_for_best_model` {name} cannot be measured on this machine: it needs Java (and SPICE its "
            "models: see showattend/metrics/scores.py)."
        )
