"""Converts a checkpoint of the write-up's training code to a folder that transformers' Auto classes load.

The write-up saves the `state_dict` of its `EncoderDecoder`, whose modules have the same names as ours. The sizes are
read off the tensors, every tensor must match a parameter, and what the file lacks is added: the tokenizer, the settings
of the image processor and of generation. No code in the file is run.
"""

import io
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from transformers import BertTokenizer, GenerationConfig

from modeling_showattend import (
    ShowAttendConfig,
    ShowAttendForConditionalGeneration,
    ShowAttendImageProcessor,
    ShowAttendProcessor,
)
from modeling_showattend.configuration_showattend import ENCODER_DIMS
from showattend.data.tokenization import load_tokenizer

MAX_NEW_TOKENS = 50  # the write-up's `max_len`, which counts [SEP] but not [CLS]
# What torch.load raises on damaged files, found by flipping bytes; code in a file raises UnpicklingError.
DAMAGED = (
    RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError, MemoryError,
    OverflowError, struct.error,
)  # fmt: skip


def convert_checkpoint(
    checkpoint: str | Path, output_dir: str | Path, tokenizer: str | Path = "bert-base-uncased"
) -> None:
    """Save model and processor of the write-up's checkpoint with `save_pretrained`.

    Args:
        checkpoint: What `torch.save(model.state_dict(), ...)` wrote, with or without DataParallel's `module.` prefix.
        tokenizer: The vocabulary that the model was trained with, for [`load_tokenizer`].

    Raises:
        ValueError: If the checkpoint is anything but a state dict of this network, or the vocabulary does not fit it.
    """
    if Path(output_dir).exists() and not Path(output_dir).is_dir():
        raise NotADirectoryError(f"cannot save to {output_dir}: it is a file, not a folder")
    state = read_state_dict(checkpoint)
    try:
        sizes = sizes_of(state)
        bert = load_tokenizer(tokenizer)
        if len(bert) != sizes["vocab_size"]:
            raise ValueError(
                f"its embedding has {sizes['vocab_size']} tokens and the tokenizer {tokenizer} has {len(bert)}: "
                "name the vocabulary it was trained with"
            )
        model = build_model(state, sizes, bert)
    except ValueError as error:
        raise ValueError(f"cannot convert {checkpoint}: {error}") from error
    # The write-up resizes images to 224x224 and scales them to 0..1, but does not normalize them.
    processor = ShowAttendProcessor(ShowAttendImageProcessor(do_normalize=False), bert)
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict without running code from the file; DataParallel's `module.` prefix is removed."""
    expected = "expected what torch.save(model.state_dict(), path) writes"
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise OSError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message suggests running the code
        raise ValueError(
            f"{path} is not a plain state dict but a whole pickled model or another file that may hold code, "
            f"and code from a file is never run: {expected}"
        ) from error
    except DAMAGED as error:
        raise ValueError(f"{path} is truncated, damaged or not a file of torch.save: {expected}") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict: {expected}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{path} is not a plain state dict: its entry {key!r} is of type {type(value).__name__}: {expected}"
            )
    state = dict(state)
    consume_prefix_in_state_dict_if_present(state, "module.")
    return state


def sizes_of(state: Mapping[str, torch.Tensor]) -> dict[str, str | int]:
    """Read the network's sizes off a state dict, named as in [`ShowAttendConfig`]."""
    shown_by = {
        "vocab_size": ("decoder.embedding.weight", 0),
        "embed_size": ("decoder.embedding.weight", 1),
        "attention_dim": ("decoder.attention.W.weight", 0),
        "decoder_dim": ("decoder.attention.W.weight", 1),
    }
    if missing := sorted({key for key, _ in shown_by.values() if key not in state or state[key].ndim != 2}):
        raise ValueError(f"it has no matrix {' and no '.join(missing)}, so it is not the whole network's state dict")
    sizes: dict[str, str | int] = {name: state[key].shape[axis] for name, (key, axis) in shown_by.items()}

    def differing_keys(encoder_name: str) -> int:
        with torch.device("meta"):  # names without numbers
            resnet = torchvision.models.get_model(encoder_name, weights=None)
        layers = torch.nn.Sequential(*list(resnet.children())[:-2])
        prefix = "encoder.resnet."
        return len({prefix + key for key in layers.state_dict()} ^ {key for key in state if key.startswith(prefix)})

    sizes["encoder_name"] = min(ENCODER_DIMS, key=differing_keys)
    return sizes


def build_model(
    state: Mapping[str, torch.Tensor], sizes: Mapping[str, str | int], tokenizer: BertTokenizer
) -> ShowAttendForConditionalGeneration:
    """Build the captioner with these weights and sizes; it generates as the write-up's inference code does."""
    config = ShowAttendConfig(
        **sizes,  # type: ignore[arg-type]
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    model = ShowAttendForConditionalGeneration(config)
    expected = model.state_dict()
    network = f"the network with a {config.encoder_name} encoder"
    if missing := [key for key in expected if key not in state]:
        raise ValueError(f"it lacks {_first_few(missing)} of {network}")
    if surplus := [key for key in state if key not in expected]:
        raise ValueError(f"{_first_few(surplus)} has no place in {network}")
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise ValueError(
                f"{key} is of size {tuple(value.shape)} and must be {tuple(expected[key].shape)} to fit its other sizes"
            )
    model.load_state_dict(state)
    model.generation_config = GenerationConfig.from_model_config(config)
    model.generation_config.update(max_length=1 + MAX_NEW_TOKENS, num_beams=1, do_sample=False)
    return model.eval()


def _first_few(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
