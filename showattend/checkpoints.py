"""Loads a trained captioner."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoProcessor
from transformers.utils import cached_file

from modeling_showattend import ShowAttendConfig, ShowAttendForConditionalGeneration, ShowAttendProcessor

# What `from_pretrained` raises on damaged folders, found by truncating files and replacing values. AssertionError and
# the like are bugs and pass through.
DAMAGED = (
    OSError, ValueError, TypeError, RuntimeError, LookupError, AttributeError, SafetensorError, StrictDataclassError,
)  # fmt: skip


@contextmanager
def loading(checkpoint: str | Path) -> Iterator[None]:
    """Raise one OSError for whatever a missing or damaged checkpoint makes transformers raise."""
    if not Path(checkpoint).is_dir() and (Path(checkpoint).is_absolute() or str(checkpoint).count("/") != 1):
        raise FileNotFoundError(f"There is no checkpoint folder {checkpoint}.")
    try:
        yield
    except Exception as error:
        # On a damaged tokenizer.json, tokenizers raises bare Exception.
        if type(error) is not Exception and not isinstance(error, DAMAGED):
            raise
        reason = " ".join(str(error).split())[:300]
        local = Path(checkpoint).is_dir()
        failure = "holds no captioner that can be loaded" if local else "could not be loaded from the Hub"
        raise OSError(f"{checkpoint} {failure}: {reason}") from error


def load_captioner(
    checkpoint: str | Path, dtype: torch.dtype = torch.float32, **changes: Any
) -> tuple[ShowAttendForConditionalGeneration, ShowAttendProcessor]:
    """Load a model in eval mode and its processor with this package's code; code in the folder is never run.

    Args:
        checkpoint: A folder that `save_pretrained` wrote, or a Hub id.
        changes: Fields of the model's config to override.

    Raises:
        OSError: If there is no captioner, or it is damaged.
        ValueError: If a changed field is out of range or does not fit the others.
    """
    with loading(checkpoint):
        config = ShowAttendConfig.from_pretrained(checkpoint)
    if changes:  # `from_pretrained` would set them unchecked
        config = ShowAttendConfig.from_dict(config.to_dict() | changes)
    with loading(checkpoint):
        model, report = ShowAttendForConditionalGeneration.from_pretrained(
            checkpoint, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
        mismatched = {name for name, *_ in report["mismatched_keys"]}
        if odd := sorted(report["missing_keys"] | report["unexpected_keys"] | mismatched):
            raise ValueError(f"its weights are not those of its config, which differ in {', '.join(odd[:3])}.")
        # Without trust_remote_code=False, transformers may ask on the terminal whether to run the folder's code.
        processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    if not isinstance(processor, ShowAttendProcessor):
        raise OSError(f"{checkpoint} holds a {type(processor).__name__}, not a captioner.")
    return model.eval(), processor


def same_kind(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    other: ShowAttendForConditionalGeneration,
    other_processor: ShowAttendProcessor,
) -> bool:
    """Whether two captioners have weights of the same names and sizes and the same vocabulary, as averaging needs."""
    shapes, other_shapes = ({name: p.shape for name, p in each.named_parameters()} for each in (model, other))
    return shapes == other_shapes and processor.tokenizer.get_vocab() == other_processor.tokenizer.get_vocab()


def weights_digest(checkpoint: str | Path) -> str:
    """The SHA-256 of a captioner's `model.safetensors`."""
    file = cached_file(checkpoint, "model.safetensors")
    assert file is not None  # it would have raised OSError
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
