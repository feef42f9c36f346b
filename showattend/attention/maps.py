"""Where the captioner looked: for every word of a caption, a map of its attention over the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from modeling_showattend.image_processing_showattend import load_image
from modeling_showattend.modeling_showattend import generated_attentions


@dataclass(frozen=True, eq=False)
class AttendedCaption:
    """A caption, and where the network looked before each word of it.

    Args:
        caption: As the processor decodes it.
        words: The caption split at its spaces: `" ".join(words) == caption`.
        grids: float32 (words, rows, columns): the attention weight of each cell. Each word's weights sum to one.
        box: (left, top, right, bottom) of the grid on the upright image, in pixels.
        size: (width, height) of the upright image in pixels.
    """

    caption: str
    words: list[str]
    grids: np.ndarray
    box: tuple[float, float, float, float]
    size: tuple[int, int]

    @cached_property
    def maps(self) -> np.ndarray:
        """The attention on each pixel of the upright image, float32 (words, height, width): see [`image_maps`].

        They take 4 bytes per word and pixel; use `resized_maps` to display a large image.
        """
        return self.resized_maps(*self.size)

    def resized_maps(self, width: int, height: int) -> np.ndarray:
        """The maps for the upright image resized to `width` x `height`, float32 (words, height, width)."""
        x, y = width / self.size[0], height / self.size[1]
        left, top, right, bottom = self.box
        return image_maps(self.grids, (left * x, top * y, right * x, bottom * y), width, height)


def attend(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    image: Any,
    text: str | None = None,
    **generation: Any,
) -> AttendedCaption:
    """Caption an image and return where the network looked before each word.

    Args:
        image: Anything that [`load_image`] reads.
        text: The beginning of the caption. Its words have maps too: where the network looked before reading them.
        generation: Passed to `generate`. With beam search, the attention is that of the winning beam.
    """
    if generation.get("num_return_sequences", 1) != 1:
        raise ValueError("attend returns one caption for an image: leave num_return_sequences out.")
    image = load_image(image)
    inputs = processor(images=image, text=text, return_tensors="pt").to(model.device)
    outputs: Any = model.generate(**inputs, **generation, return_dict_in_generate=True, output_attentions=True)
    # The first step reads [CLS] and the prompt: (beams, 1, [CLS] and prompt tokens, positions), the same for all beams.
    prompt = outputs.cross_attentions[0][0][0, 0, :-1]  # (prompt tokens, positions)
    attentions = torch.cat([prompt, generated_attentions(outputs)[0]])  # (tokens, positions)
    grid = model.encoder.grid_shape(*inputs["pixel_values"].shape[-2:])
    return attended_caption(processor, image.size, grid, outputs.sequences[0, 1:], attentions)


def attended_caption(
    processor: ShowAttendProcessor,
    size: tuple[int, int],
    grid: tuple[int, int],
    ids: torch.Tensor,
    attentions: torch.Tensor,
) -> AttendedCaption:
    """A caption from its tokens; `size` is the upright image's, and the rest is as in [`words_and_grids`]."""
    words, grids = words_and_grids(processor, ids, attentions, *grid)
    return AttendedCaption(" ".join(words), words, grids, processor.image_processor.attention_box(*size), size)


def words_and_grids(
    processor: ShowAttendProcessor,
    ids: torch.Tensor | Sequence[int],
    attentions: torch.Tensor | np.ndarray,
    rows: int,
    columns: int,
) -> tuple[list[str], np.ndarray]:
    """Merge tokens into the words that `processor.decode` writes, and average the attention of each word's tokens.

    Args:
        ids: (tokens,): the caption after `[CLS]`. Special tokens ([SEP], padding, [UNK]) belong to no word.
        attentions: (tokens, rows * columns): where the network looked before each token.
        rows, columns: Size of the grid, from [`ShowAttendEncoder.grid_shape`].

    Returns:
        The words, and their attention as float32 (words, rows, columns); each word's sums to one.
    """
    ids = [int(token) for token in ids]
    weights = torch.as_tensor(attentions).float().cpu().numpy().reshape(len(ids), rows, columns)
    words = processor.decode(ids, skip_special_tokens=True).split()
    grids = np.zeros((len(words), rows, columns), dtype=np.float32)
    for word, tokens in enumerate(tokens_of_words(processor, ids)):
        mean = weights[tokens].mean(axis=0, dtype=np.float64)
        grids[word] = mean / mean.sum()  # in low precision the weights sum to almost one
    return words, grids


def tokens_of_words(processor: ShowAttendProcessor, ids: Sequence[int]) -> list[list[int]]:
    """The positions in `ids` of the tokens of each word that `processor.decode` writes."""
    words = processor.decode(ids, skip_special_tokens=True).split()
    # Decoding removes spaces and nothing else, so counting letters shows which word a token ends up in.
    ends = np.cumsum([len(word) for word in words])
    members: list[list[int]] = [[] for _ in words]
    letters = 0
    for number in range(len(ids)):
        before = letters
        letters = len("".join(processor.decode(ids[: number + 1], skip_special_tokens=True).split()))
        if letters > before:
            members[int(np.searchsorted(ends, before, side="right"))].append(number)
    return members


def image_maps(grids: np.ndarray, box: tuple[float, float, float, float], width: int, height: int) -> np.ndarray:
    """Upsample the attention weights of a grid to an image.

    The paper upsamples the weights with a Gaussian filter (Xu et al., 2015, section 5.4). Here the kernel is a cubic
    B-spline: close to a Gaussian with a standard deviation of 0.58 cells, but of finite width. The kernel is reflected
    at the border of the grid, so the weight of a border cell stays inside and equal weights make an even map.

    Args:
        grids: (..., rows, columns), not negative.
        box: (left, top, right, bottom) of the grid in pixels of the image, as `attention_box` gives it.
        width, height: Size of the image in pixels.

    Returns:
        float32 (..., height, width): the share of the attention on each pixel: not negative, zero outside the box. A
        map sums to one, or is all zero if all of its weight lies on the padding that a crop added.
    """
    grids = np.asarray(grids, dtype=np.float64)
    left, top, right, bottom = box
    down = _shares(grids.shape[-2], top, bottom, height)  # (height, rows)
    across = _shares(grids.shape[-1], left, right, width)  # (width, columns)
    totals = (down.sum(axis=0) @ grids @ across.sum(axis=0))[..., None, None]  # weight on the image, (..., 1, 1)
    grids = np.divide(grids, totals, out=np.zeros_like(grids), where=totals > 0)
    return down.astype(np.float32) @ grids.astype(np.float32) @ across.T.astype(np.float32)


def _shares(cells: int, start: float, end: float, pixels: int) -> np.ndarray:
    """The share of each of `cells` cells between `start` and `end` that falls on each pixel, (pixels, cells)."""
    edges = (np.clip(np.arange(pixels + 1), start, end) - start) / (end - start) * cells  # of the pixels, in cells
    centres = np.arange(-2, cells + 2) + 0.5  # of the cells, and of two mirrored cells beyond either border
    distances = np.clip(edges[:, None] - centres, -2, 2)  # (pixels + 1, cells + 4)
    # The integral of the cubic B-spline up to each edge: a pixel's share is the difference between its two edges.
    terms = [sign * np.maximum(distances + knot, 0) ** 4 for sign, knot in ((1, 2), (-4, 1), (6, 0), (-4, -1))]
    between = np.maximum(np.diff(sum(terms) / 24, axis=0), 0)  # (pixels, cells + 4)
    shares = np.zeros((pixels, cells))
    for number, column in enumerate(between.T):
        cell = (number - 2) % (2 * cells)  # a grid of one cell is mirrored twice
        shares[:, min(cell, 2 * cells - 1 - cell)] += column
    return shares
