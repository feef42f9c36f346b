"""Captions images with torch: batches through transformers' `generate`."""

import os
from collections.abc import Sequence
from typing import Any

import torch

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from showattend.generation import generation_config

from .stream import Caption


def best_device() -> torch.device:
    """The accelerator; the CPU if there is none, or if `accelerate` is configured to use it."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.accelerator.is_available():
        return torch.device("cpu")
    device = torch.accelerator.current_accelerator()
    assert device is not None
    return device


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA GPUs that support it, float16 on older ones, float32 elsewhere.

    On CPUs, bfloat16 is not always faster, and its captions differ slightly from those of float32.
    """
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


class TorchCaptioner:
    """A [`Captioner`] of a model in eval mode and its processor.

    Args:
        prefix: How every caption begins.
        generation: Fields of `GenerationConfig`: see [`generation_config`].

    Raises:
        ValueError: If the settings contradict each other, or the model cannot begin a caption with the prefix.
    """

    def __init__(
        self,
        model: ShowAttendForConditionalGeneration,
        processor: ShowAttendProcessor,
        prefix: str | None = None,
        **generation: Any,
    ) -> None:
        self.model, self.processor = model, processor
        self.generation_config = generation_config(model.generation_config, **generation)
        self.prefix_ids = processor(text=prefix or "", return_tensors="pt")["decoder_input_ids"]  # (1, tokens)
        if (self.prefix_ids == processor.tokenizer.unk_token_id).any():
            raise ValueError(f"`prefix` {prefix!r} holds a word that the checkpoint's vocabulary does not know.")
        length, longest = self.prefix_ids.shape[1], self.generation_config.max_length
        if longest is not None and length >= longest:
            raise ValueError(f"`prefix` has {length} tokens with [CLS], which leaves none for a caption of {longest}.")

    def read(self, source: Any) -> torch.Tensor:
        """`pixel_values` (1, 3, height, width)."""
        return self.processor.image_processor(source, return_tensors="pt")["pixel_values"]

    def caption(self, images: Sequence[torch.Tensor]) -> list[list[Caption]]:
        captions: list[list[Caption]] = [[] for _ in images]
        # A processor that keeps proportions returns images of several sizes.
        rows_by_size: dict[torch.Size, list[int]] = {}
        for row, image in enumerate(images):
            rows_by_size.setdefault(image.shape, []).append(row)
        try:
            for rows in rows_by_size.values():
                generated = self._generate(torch.cat([images[row] for row in rows]))
                for row, of_image in zip(rows, generated, strict=True):
                    captions[row] = of_image
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):  # a GPU's or a CPU's
                raise MemoryError(f"{len(images)} images together do not fit into memory.") from error
            raise
        return captions

    @torch.inference_mode()
    def _generate(self, pixel_values: torch.Tensor) -> list[list[Caption]]:
        images, device = len(pixel_values), self.model.device
        encoder_outputs = self.model.encoder(pixel_values=pixel_values.to(device))
        sequences = self.model.generate(
            encoder_outputs=encoder_outputs,
            decoder_input_ids=self.prefix_ids.repeat(images, 1).to(device),
            generation_config=self.generation_config,
        )  # (images * captions of each, tokens)
        scores = caption_scores(self.model, encoder_outputs, sequences, self.prefix_ids.shape[1]).tolist()
        texts = self.processor.batch_decode(sequences, skip_special_tokens=True)
        captions = list(map(Caption, texts, scores))
        of_each = len(captions) // images
        groups = [captions[first : first + of_each] for first in range(0, len(captions), of_each)]
        if self.generation_config.do_sample:  # beam search has ranked its captions, by the length penalty
            groups = [sorted(group, key=lambda caption: -caption.score) for group in groups]
        return groups


def caption_scores(
    model: ShowAttendForConditionalGeneration, encoder_outputs: Any, sequences: torch.Tensor, first: int = 1
) -> torch.Tensor:
    """The mean log probability of the generated tokens, `[SEP]` among them, at temperature 1: (captions,).

    Args:
        sequences: (captions, tokens), as `generate` returned them.
        first: The number of tokens that generation began with.
    """
    logits = model(encoder_outputs=encoder_outputs, decoder_input_ids=sequences[:, :-1]).logits[:, first - 1 :]
    tokens = sequences[:, first:]  # (captions, generated tokens)
    log_probabilities = logits.float().log_softmax(dim=-1).gather(2, tokens.unsqueeze(2)).squeeze(2)
    ends = tokens == model.config.eos_token_id
    generated = ends.cumsum(dim=1) - ends.long() == 0  # up to the first [SEP]: padding comes after it
    return (log_probabilities * generated).sum(dim=1) / generated.sum(dim=1)
