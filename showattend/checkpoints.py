"""A trained captioner, ready to use: what every script starts from."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor

from modeling_showattend.modeling_showattend import ShowAttendForConditionalGeneration
from modeling_showattend.processing_showattend import ShowAttendProcessor


def load_captioner(
    checkpoint: str | Path, dtype: torch.dtype = torch.float32, **config: Any
) -> tuple[ShowAttendForConditionalGeneration, ShowAttendProcessor]:
    """Load a model and its processor with this package's code; none that lies in the folder is run.

    Args:
        checkpoint: A folder that `save_pretrained` wrote, or a Hub id.
        dtype: To compute in.
        config: Fields of the model's config that are to differ from what was saved.

    Raises:
        OSError: If there is no captioner, or it is damaged.
    """
    if not Path(checkpoint).is_dir() and (Path(checkpoint).is_absolute() or str(checkpoint).count("/") != 1):
        raise FileNotFoundError(f"There is no checkpoint folder {checkpoint}.")
    try:
        model, report = ShowAttendForConditionalGeneration.from_pretrained(
            checkpoint, dtype=dtype, output_loading_info=True, **config
        )
        if odd := sorted(report["missing_keys"] | report["unexpected_keys"]):
            raise ValueError(f"its weights are not those of its config, which differ in {', '.join(odd[:3])}.")
        processor = AutoProcessor.from_pretrained(checkpoint)
    except Exception as error:  # of a dozen types, from as many libraries
        reason = " ".join(str(error).split())[:300]
        local = Path(checkpoint).is_dir()
        failure = "holds no captioner that can be loaded" if local else "could not be loaded from the Hub"
        raise OSError(f"{checkpoint} {failure}: {reason}") from error
    if not isinstance(processor, ShowAttendProcessor):
        raise OSError(f"{checkpoint} holds no captioner but a {type(processor).__name__}.")
    return model.eval(), processor
