"""Captions that can be watched while they grow: the words so far, and where the network looked before each."""

from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image

from modeling_showattend.modeling_showattend import ShowAttendForConditionalGeneration, generated_attentions
from modeling_showattend.processing_showattend import ShowAttendProcessor

from .maps import CELL, AttendedCaption, words_and_grids


def stream_captions(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    photo: Image.Image,
    num_captions: int = 1,
    **generation: Any,
) -> Iterator[list[AttendedCaption]]:
    """Caption a photo and give the captions after every word piece; those of beam search when it is done.

    They are those that `generate` gives, but never hold `[PAD]`. The last word of a growing caption may still change:
    "play", "playing".

    Args:
        model: In eval mode, on any device.
        processor: The model's.
        photo: Upright, as [`load_image`] gives it.
        num_captions: Samples are told one after another; of beam search, the best beams. Greedy search has one.
        generation: Goes to `generate`: `num_beams`, `do_sample`, `temperature` and so on.

    Yields:
        All captions so far, the growing one last.

    Raises:
        ValueError: From `generate`, for settings that it does not take.
    """
    pixel_values = processor(images=photo, return_tensors="pt").to(model.device)["pixel_values"]
    height, width = pixel_values.shape[-2:]
    grid = -(-height // CELL), -(-width // CELL)
    box = processor.image_processor.attention_box(*photo.size)
    with torch.no_grad():
        encoded = model.encoder(pixel_values=pixel_values)  # once for all steps and captions
    settings = {
        "encoder_outputs": encoded,
        "return_dict_in_generate": True,
        "output_attentions": True,
        "suppress_tokens": [processor.tokenizer.pad_token_id],  # it means nothing, and no caption could go on from it
        **generation,
    }

    def attended(sequence: torch.Tensor, attentions: torch.Tensor) -> AttendedCaption:
        words, grids = words_and_grids(processor, sequence[1:], attentions, *grid)
        return AttendedCaption(" ".join(words), words, grids, box, photo.size)

    if (generation.get("num_beams") or model.generation_config.num_beams or 1) > 1:
        outputs: Any = model.generate(**settings, num_return_sequences=num_captions)
        yield list(map(attended, outputs.sequences, generated_attentions(outputs)))
        return

    longest = generation.get("max_length") or model.generation_config.max_length
    told: list[AttendedCaption] = []
    for _ in range(num_captions):
        sequence = torch.tensor([[processor.tokenizer.cls_token_id]], device=model.device)
        while sequence.shape[1] < longest and sequence[0, -1] != processor.tokenizer.sep_token_id:
            # One more piece. Reading the pieces before it anew costs little, and gives the attention of all again.
            outputs = model.generate(decoder_input_ids=sequence, **{**settings, "max_length": sequence.shape[1] + 1})
            sequence = outputs.sequences
            yield [*told, attended(sequence[0], outputs.cross_attentions[0][0][0, 0])]
        told.append(attended(sequence[0], outputs.cross_attentions[0][0][0, 0]))
