"""Loads any captioner of transformers, so that all are evaluated in the same way."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    VisionEncoderDecoderConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from modeling_showattend import ShowAttendConfig
from showattend.checkpoints import load_captioner, loading


def load_any_captioner(checkpoint: str | Path, prompt: str | None = None) -> tuple[Any, Any]:
    """Load a captioner of any architecture, in float32.

    Args:
        prompt: What the captioner is given with every image: the beginning of the caption for BLIP, GIT and ours, a
            question or a task for BLIP-2 and Florence-2.

    Returns:
        The model in eval mode and a [`PromptProcessor`]; or our processor, where there is no prompt.

    Raises:
        OSError: If there is no captioner, or it is damaged, or it takes no prompt.
    """
    with loading(checkpoint):
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise ValueError(f"a {config.model_type} model does not caption images.")
    if isinstance(config, ShowAttendConfig):
        model, processor = load_captioner(checkpoint)
        return model, processor if prompt is None else PromptProcessor(model, processor, processor.tokenizer, prompt)
    with loading(checkpoint):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        model, report = loaded
        if report["missing_keys"]:
            raise ValueError(f"its weights lack {', '.join(sorted(report['missing_keys'])[:3])}.")
        if isinstance(config, VisionEncoderDecoderConfig):
            if prompt is not None:
                raise ValueError("a vision-encoder-decoder model takes no prompt.")
            processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
        else:
            processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False)
            tokenizer = processor.tokenizer
    return model.eval(), PromptProcessor(model, processor, tokenizer, prompt)


class PromptProcessor:
    """Prepares images, each with the same prompt, and decodes captions without it."""

    def __init__(self, model: Any, processor: Any, tokenizer: Any, prompt: str | None) -> None:
        self._processor = processor
        self._decode = getattr(processor, "batch_decode", tokenizer.batch_decode)  # ours joins t-shirt
        self._prompt = prompt
        self._inputs = inspect.signature(model.forward).parameters
        self._ends_prompts = model.config.model_type == "git"  # its tokenizer ends the prompt like a caption
        of_encoder = model.config.is_encoder_decoder and "input_ids" in self._inputs
        self._prefix = ""
        if prompt is not None and not of_encoder:  # then captions begin with it
            self._prefix = self._decode([tokenizer(prompt)["input_ids"]], skip_special_tokens=True)[0].strip()

    def __call__(self, images: Sequence[Image.Image], return_tensors: str = "pt") -> dict[str, Any]:
        text = {} if self._prompt is None else {"text": [self._prompt] * len(images)}
        inputs = self._processor(
            images=[image.convert("RGB") for image in images], return_tensors=return_tensors, **text
        )
        inputs = {name: value for name, value in inputs.items() if name in self._inputs}
        if self._ends_prompts:
            inputs |= {name: inputs[name][:, :-1] for name in ("input_ids", "attention_mask") if name in inputs}
        return inputs

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = True) -> list[str]:
        texts = self._decode(sequences, skip_special_tokens=skip_special_tokens)
        return [text.strip().removeprefix(self._prefix).strip() for text in texts]
