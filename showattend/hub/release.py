"""Prepares a trained captioner for sharing: weights in float16, half the size."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from modeling_showattend.modeling_showattend import ShowAttendEncoder
from showattend.checkpoints import load_captioner
from showattend.folders import check_replaceable, keep_others, replacing
from showattend.generation import generation_config

MAX_BYTES = 99_000_000  # GitHub refuses files of 100 MB


def pack_checkpoint(checkpoint: str | Path, output_dir: str | Path, **generation: Any) -> int:
    """Write a captioner's complete folder with its weights in float16, which load as float32.

    Args:
        generation: Defaults of `generate`, such as `num_beams`.

    Returns:
        The size of the captioner in bytes, at most `MAX_BYTES`; other files that `output_dir` holds stay there.

    Raises:
        ValueError: If a generation setting is unknown, or a weight is outside float16's range.
        OSError: If the folder cannot be written, or would be larger than `MAX_BYTES`.
    """
    output_dir = Path(output_dir).absolute()
    check_replaceable(output_dir)
    model, processor = load_captioner(checkpoint)
    model.generation_config = generation_config(model.generation_config, **generation)
    model.config.finetune_last_stages = 0  # only training uses it
    if model.config.backbone_config is None:
        shrink_stem(model.encoder)
    model.half()
    if lost := [name for name, weights in model.state_dict().items() if not weights.isfinite().all()]:
        raise ValueError(f"{checkpoint} has weights outside float16's range in {', '.join(lost[:3])}.")
    with replacing(output_dir) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        model.config.dtype = torch.float32  # float16 is for storage only: CPUs are faster in float32
        model.config.save_pretrained(folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        if size > MAX_BYTES:
            raise OSError(f"{size / 1e6:.0f} MB, more than {MAX_BYTES / 1e6:.0f}")
        keep_others(output_dir, folder)
    return size


@torch.no_grad()
def shrink_stem(encoder: ShowAttendEncoder) -> None:
    """Scale the first convolution's outputs to a variance of about 1, and its BatchNorm's statistics along with them.

    The encoder's output does not change. Weights trained on pixels from 0 to 255 have variances that overflow float16;
    scaling by powers of two changes exponents only, so nothing is rounded.
    """
    convolution, norm = encoder.resnet[0], encoder.resnet[1]
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.exp2(norm.running_var.sqrt().log2().round()).clamp(min=1)  # (channels,)
    convolution.weight /= scale[:, None, None, None]
    norm.running_mean /= scale
    norm.running_var /= scale**2
