"""A trained captioner made ready to be shared: half the size, the same captions as near as float16 allows."""

from pathlib import Path
from typing import Any

import torch

from .captioner import load_captioner
from .safe_folders import replacing

MAX_BYTES = 99_000_000  # GitHub refuses files of 100 MB


def pack_checkpoint(checkpoint: str | Path, output_dir: str | Path, **generation: Any) -> int:
    """Write a captioner's complete folder with its weights in float16, which load as float32.

    Args:
        checkpoint: The captioner's folder or Hub id.
        output_dir: Where to write; what lies there is replaced.
        generation: Settings that `generate` is to use by default, such as `num_beams`.

    Returns:
        The size of the folder in bytes.

    Raises:
        OSError: If the checkpoint cannot be read or the folder not be written, or would be too large for GitHub.
        ValueError: If a generation setting is unknown.
    """
    output_dir = Path(output_dir)
    model, processor = load_captioner(checkpoint)
    unknown = model.generation_config.update(**generation)
    if unknown:
        raise ValueError(f"generate knows no setting {', '.join(unknown)}.")
    model.config.finetune_last_stages = 0  # a matter of the training that is over
    model.half()
    with replacing(output_dir) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        model.config.dtype = torch.float32  # float16 is for the disk: a CPU computes better in float32
        model.config.save_pretrained(folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        if size > MAX_BYTES:
            raise ValueError(f"{size / 1e6:.0f} MB, more than {MAX_BYTES / 1e6:.0f}")
    return size
