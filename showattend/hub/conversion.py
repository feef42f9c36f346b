"""From a checkpoint of the write-up's training code to a folder that transformers' Auto classes load.

The write-up saves the `state_dict` of its `EncoderDecoder`, whose modules have the names of ours. So the sizes are read
off the tensors, every tensor is checked to have its place, and what the file does not hold is added: the tokenizer, how
the photos were prepared, how captions were generated. No code in the file is run.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from transformers import BertTokenizer, GenerationConfig

from modeling_showattend.configuration_showattend import ENCODER_DIMS, ShowAttendConfig
from modeling_showattend.image_processing_showattend import ShowAttendImageProcessor
from modeling_showattend.modeling_showattend import ShowAttendForConditionalGeneration
from modeling_showattend.processing_showattend import ShowAttendProcessor
from showattend.data.tokenization import load_tokenizer

GENERATED_PIECES = 50  # the write-up's `max_len`, [SEP] counted and [CLS] not


def convert_checkpoint(
    checkpoint: str | Path, output_dir: str | Path, tokenizer: str | Path = "bert-base-uncased"
) -> None:
    """Saves model and processor of the write-up's checkpoint with `save_pretrained`.

    Args:
        checkpoint: What `torch.save(model.state_dict(), ...)` wrote, with or without DataParallel's `module.` prefix.
        output_dir: The folder to save to; made if absent.
        tokenizer: The vocabulary that the model was trained with, for [`load_tokenizer`].

    Raises:
        OSError: If the checkpoint or the tokenizer cannot be read or the folder cannot be written.
        ValueError: If the checkpoint is anything but a state dict of this network, or the vocabulary does not fit it.
    """
    if Path(output_dir).exists() and not Path(output_dir).is_dir():
        raise NotADirectoryError(f"cannot save to {output_dir}: it is a file, and a folder is needed")
    state = read_state_dict(checkpoint)
    try:
        sizes = sizes_of(state)
        bert = load_tokenizer(tokenizer)
        if len(bert) != sizes["vocab_size"]:
            raise ValueError(
                f"its embedding has {sizes['vocab_size']} word pieces and the tokenizer {tokenizer} has {len(bert)}: "
                "name the vocabulary it was trained with"
            )
        model = build_model(state, sizes, bert)
    except ValueError as error:
        raise ValueError(f"cannot convert {checkpoint}: {error}") from error
    # The write-up squashes photos to 224x224 and scales them to 0..1, and leaves it at that.
    processor = ShowAttendProcessor(ShowAttendImageProcessor(do_normalize=False), bert)
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads a state dict without running code from the file; DataParallel's `module.` prefix is taken off.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is damaged, or is not a plain dict of tensors.
    """
    expected = "expected what torch.save(model.state_dict(), path) writes"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise OSError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    except pickle.UnpicklingError as error:  # torch's own message advises to run the code
        raise ValueError(
            f"{path} is no plain state dict but a whole pickled model or another file that may hold code, "
            f"and code from a file is never run: {expected}"
        ) from error
    except Exception as error:  # RuntimeError, EOFError, KeyError, OSError: whatever torch stumbles over
        raise ValueError(f"{path} is truncated, damaged or not a file of torch.save: {expected}") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__} and no state dict: {expected}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{path} is no plain state dict, since its entry {key!r} is of type {type(value).__name__}: {expected}"
            )
    state = dict(state)
    consume_prefix_in_state_dict_if_present(state, "module.")
    return state


def sizes_of(state: Mapping[str, torch.Tensor]) -> dict[str, str | int]:
    """The sizes of the network that a state dict belongs to, under their names in [`ShowAttendConfig`].

    Raises:
        ValueError: If a tensor that tells a size is absent or not a matrix.
    """
    told_by = {
        "vocab_size": ("decoder.embedding.weight", 0),
        "embed_size": ("decoder.embedding.weight", 1),
        "attention_dim": ("decoder.attention.W.weight", 0),
        "decoder_dim": ("decoder.attention.W.weight", 1),
    }
    if absent := sorted({key for key, _ in told_by.values() if key not in state or state[key].ndim != 2}):
        raise ValueError(f"it has no matrix {' and no '.join(absent)}, and so is no state dict of the whole network")
    sizes: dict[str, str | int] = {name: state[key].shape[axis] for name, (key, axis) in told_by.items()}

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
    """The captioner with these weights and sizes, which generates as the write-up's inference code does.

    Raises:
        ValueError: If a tensor is missing, of the wrong size, or left over.
    """
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
    model.generation_config.update(max_length=1 + GENERATED_PIECES, num_beams=1, do_sample=False)
    return model.eval()


def _first_few(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
