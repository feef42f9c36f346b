"""Streams captions while they are generated: the words so far, and where the network looked before each."""

from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from modeling_showattend.modeling_showattend import generated_attentions
from showattend.generation import generation_config

from .maps import AttendedCaption, attended_caption


def stream_captions(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    image: Image.Image,
    num_captions: int = 1,
    **generation: Any,
) -> Iterator[list[AttendedCaption]]:
    """Caption an image and yield the captions after every token; beam search yields once, at its end.

    The captions are those of `generate`, except that `[PAD]` is never generated. The last word of an unfinished caption
    may still change: "play", "playing".

    Args:
        image: Upright, as [`load_image`] returns it.
        num_captions: Samples, generated one after another, or beams, the best first. Greedy search has one caption.

    Yields:
        All captions so far, the unfinished one last.
    """
    pixel_values = processor(images=image, return_tensors="pt").to(model.device)["pixel_values"]
    grid = model.encoder.grid_shape(*pixel_values.shape[-2:])
    with torch.no_grad():
        encoder_outputs = model.encoder(pixel_values=pixel_values)  # once for all steps and captions
    config = generation_config(
        model.generation_config,
        return_dict_in_generate=True,
        output_attentions=True,
        suppress_tokens=[processor.tokenizer.pad_token_id],  # it has no text, and no caption can continue from it
        **generation,
    )

    def attended(sequence: torch.Tensor, attentions: torch.Tensor) -> AttendedCaption:
        return attended_caption(processor, image.size, grid, sequence[1:], attentions)

    if config.num_beams > 1:
        config.num_return_sequences = num_captions
        outputs: Any = model.generate(encoder_outputs=encoder_outputs, generation_config=config)
        yield list(map(attended, outputs.sequences, generated_attentions(outputs)))
        return

    max_length = config.max_length
    finished: list[AttendedCaption] = []
    for _ in range(num_captions):
        sequence = torch.tensor([[processor.tokenizer.cls_token_id]], device=model.device)
        while sequence.shape[1] < max_length and sequence[0, -1] != processor.tokenizer.sep_token_id:
            # One more token. Reading the earlier tokens again is cheap and returns the attention of all tokens.
            config.max_length = sequence.shape[1] + 1
            outputs = model.generate(
                encoder_outputs=encoder_outputs, decoder_input_ids=sequence, generation_config=config
            )
            sequence = outputs.sequences
            caption = attended(sequence[0], outputs.cross_attentions[0][0][0, 0])
            yield [*finished, caption]
        finished.append(caption)
