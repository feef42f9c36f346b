"""The app for programs: one image in, captions with scores, words and attention out, as JSON."""

from collections.abc import Callable
from typing import Any

import gradio as gr
import torch
from PIL import Image

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from modeling_showattend.modeling_showattend import generated_attentions
from showattend.attention.maps import attended_caption
from showattend.captioning.generate import caption_scores

from .uploads import read_image

MAX_BEAMS, MAX_CAPTIONS = 10, 5
TEMPERATURES = 0.1, 2.0  # the lowest and the highest


def caption_endpoint(
    model: ShowAttendForConditionalGeneration, processor: ShowAttendProcessor
) -> Callable[..., dict[str, Any]]:
    """The function behind `/caption`, whose arguments are those of a request."""

    def caption(
        image: gr.FileData,  # it arrives as a dict, its fields in JSON
        num_beams: int = 1,
        num_captions: int = 1,
        do_sample: bool = False,
        temperature: float = 1.0,
    ) -> dict[str, Any]:
        """Caption an image: see `showattend.app.api.describe` for what it returns."""
        try:
            settings = check_settings(num_beams, num_captions, do_sample, temperature)
            if not isinstance(image, dict) or "path" not in image:
                raise ValueError("image must be an uploaded file: gradio_client's handle_file uploads one.")
            return describe(model, processor, read_image(image["path"]), **settings)
        except (OSError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return caption


def check_settings(num_beams: int, num_captions: int, do_sample: bool, temperature: float) -> dict[str, Any]:
    """Turn a request's settings into those of `generate`; ValueError if they are out of bounds or contradictory."""
    _check("num_beams", num_beams, 1, MAX_BEAMS, int)
    _check("num_captions", num_captions, 1, MAX_CAPTIONS, int)
    _check("temperature", temperature, *TEMPERATURES, (int, float))
    _check("do_sample", do_sample, False, True, bool)
    if do_sample and num_beams > 1:
        raise ValueError("do_sample draws captions, num_beams searches for the best: choose one of them.")
    if not do_sample and num_captions > num_beams:
        raise ValueError(
            f"num_captions {num_captions} needs {num_captions} or more num_beams, not {num_beams}, or do_sample."
        )
    settings = {"num_beams": num_beams, "num_return_sequences": num_captions, "do_sample": do_sample}
    return {**settings, "temperature": temperature} if do_sample else settings


def _check(name: str, value: Any, low: Any, high: Any, kind: Any) -> None:
    if not isinstance(value, kind) or not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {value!r}.")


@torch.inference_mode()
def describe(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    image: Image.Image,
    **generation: Any,
) -> dict[str, Any]:
    """Caption an upright RGB image; `generation` goes to `generate`.

    Returns:
        `captions`, the best first, and of each `caption`, `score` (the mean log probability of its tokens), `words`
        and `grids` (words, rows, columns), the share of the attention on each cell before each word; `box` (left, top,
        right, bottom), where the grid lies on the image, in pixels; `size` (width, height).
    """
    pixel_values = processor(images=image, return_tensors="pt").to(model.device)["pixel_values"]
    grid = model.encoder.grid_shape(*pixel_values.shape[-2:])
    encoder_outputs = model.encoder(pixel_values=pixel_values)
    outputs: Any = model.generate(
        encoder_outputs=encoder_outputs,
        suppress_tokens=[processor.tokenizer.pad_token_id],  # as on the page: it has no text
        return_dict_in_generate=True,
        output_attentions=True,
        **generation,
    )
    captions = []
    scores = caption_scores(model, encoder_outputs, outputs.sequences)
    for sequence, attentions, score in zip(outputs.sequences, generated_attentions(outputs), scores, strict=True):
        attended = attended_caption(processor, image.size, grid, sequence[1:], attentions)
        of_words = {"words": attended.words, "grids": attended.grids.tolist()}
        captions.append({"caption": attended.caption, "score": float(score), **of_words})
    if generation.get("do_sample"):  # beam search has ranked its captions, by the length penalty
        captions.sort(key=lambda caption: -caption["score"])
    return {"captions": captions, "box": list(attended.box), "size": list(image.size)}
