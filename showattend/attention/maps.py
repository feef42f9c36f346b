"""Where the captioner looked: for every word of a caption, a map of its attention on the photo.

`attend` captions a photo and gives words and maps at once. Its two halves serve alone as well: `words_and_grids` joins
word pieces to words, with the attention of each, and `photo_maps` lays such attention on the photo.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from modeling_showattend.image_processing_showattend import load_image
from modeling_showattend.modeling_showattend import ShowAttendForConditionalGeneration, generated_attentions
from modeling_showattend.processing_showattend import ShowAttendProcessor

CELL = 32  # pixels of the network's input in a cell of its grid, along each side: every ResNet halves its input 5 times


@dataclass(frozen=True, eq=False)
class AttendedCaption:
    """A caption, and where the network looked before each word of it.

    Args:
        caption: As the processor decodes it.
        words: What stands between the caption's spaces: `" ".join(words) == caption`.
        grids: float32 (words, rows, columns): the attention on each cell of the grid. Each word's sums to one.
        box: (left, top, right, bottom): where the grid lies on the upright photo, in pixels.
        size: (width, height) of the upright photo.
    """

    caption: str
    words: list[str]
    grids: np.ndarray
    box: tuple[float, float, float, float]
    size: tuple[int, int]

    @cached_property
    def maps(self) -> np.ndarray:
        """The attention on each pixel of the upright photo, float32 (words, height, width), as [`photo_maps`] says.

        They take 4 bytes a word and pixel: of a large photo, `resized_maps` are enough to look at.
        """
        return self.resized_maps(*self.size)

    def resized_maps(self, width: int, height: int) -> np.ndarray:
        """The maps on the upright photo resized to `width` x `height`, float32 (words, height, width)."""
        x, y = width / self.size[0], height / self.size[1]
        left, top, right, bottom = self.box
        return photo_maps(self.grids, (left * x, top * y, right * x, bottom * y), width, height)


def attend(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    image: Any,
    text: str | None = None,
    **generation: Any,
) -> AttendedCaption:
    """Caption a photo and say where the network looked before each word.

    Args:
        model: In eval mode, on any device.
        processor: The model's.
        image: A photo of any kind that [`load_image`] reads.
        text: How the caption is to begin. Its words have maps too: where the network looked before it read them.
        generation: Goes to `generate`. With beams, the attention is that of the beam that survived.

    Raises:
        ValueError: If several captions are asked for; or from [`load_image`] and `generate`.
        OSError: If the photo cannot be read.
    """
    if generation.get("num_return_sequences", 1) != 1:
        raise ValueError("attend tells one caption of a photo: leave num_return_sequences out.")
    photo = load_image(image)
    inputs = processor(images=photo, text=text, return_tensors="pt").to(model.device)
    outputs: Any = model.generate(**inputs, **generation, return_dict_in_generate=True, output_attentions=True)
    # The first step read [CLS] and the given text, and looked before every piece of it: (beams, 1, read, positions).
    given = outputs.cross_attentions[0][0][0, 0, :-1]  # (pieces of the text, positions), the same for all beams
    attentions = torch.cat([given, generated_attentions(outputs)[0]])  # (pieces, positions)
    height, width = inputs["pixel_values"].shape[-2:]
    words, grids = words_and_grids(
        processor, outputs.sequences[0, 1:], attentions, rows=-(-height // CELL), columns=-(-width // CELL)
    )
    box = processor.image_processor.attention_box(*photo.size)
    return AttendedCaption(" ".join(words), words, grids, box, photo.size)


def words_and_grids(
    processor: ShowAttendProcessor,
    ids: torch.Tensor | Sequence[int],
    attentions: torch.Tensor | np.ndarray,
    rows: int,
    columns: int,
) -> tuple[list[str], np.ndarray]:
    """Join word pieces to the words that `processor.decode` writes, and average the attention of each word's pieces.

    Where a caption is shown while it grows, call this with the pieces so far: the last word may still change.

    Args:
        processor: Of the model that generated the pieces.
        ids: (pieces,): the caption after `[CLS]`. Special tokens ([SEP], padding, [UNK]) belong to no word.
        attentions: (pieces, rows * columns): where the network looked before each piece.
        rows, columns: Of the grid: the height and width of `pixel_values` over 32, rounded up.

    Returns:
        The words, and their attention as float32 (words, rows, columns); each word's sums to one.
    """
    ids = [int(piece) for piece in ids]
    weights = torch.as_tensor(attentions).float().cpu().numpy().reshape(len(ids), rows, columns)
    words = processor.decode(ids, skip_special_tokens=True).split()
    # Decoding only ever takes spaces away, so a piece lies where the letters of the pieces up to it end.
    ends = np.cumsum([len(word) for word in words])
    members: list[list[int]] = [[] for _ in words]
    letters = 0
    for number in range(len(ids)):
        before = letters
        letters = len("".join(processor.decode(ids[: number + 1], skip_special_tokens=True).split()))
        if letters > before:
            members[int(np.searchsorted(ends, before, side="right"))].append(number)
    grids = np.zeros((len(words), rows, columns), dtype=np.float32)
    for word, pieces in enumerate(members):
        mean = weights[pieces].mean(axis=0, dtype=np.float64)
        grids[word] = mean / mean.sum()  # low precision sums to almost one
    return words, grids


def photo_maps(grids: np.ndarray, box: tuple[float, float, float, float], width: int, height: int) -> np.ndarray:
    """Lay the weights of a grid smoothly on a photo.

    The paper upsamples the weights with a Gaussian filter (Xu et al., 2015, section 5.4). Here every cell spreads its
    weight as a cubic B-spline, which is bilinear interpolation smoothed once more: much like a Gaussian with a standard
    deviation of 0.58 cells, but of finite width. What would leave the grid is reflected at its border, so that all of
    a cell's weight stays on what the network saw, and equal weights make an even map.

    Args:
        grids: (..., rows, columns), not negative.
        box: (left, top, right, bottom) of the grid in pixels of the photo, as `attention_box` gives it.
        width, height: Size of the photo in pixels.

    Returns:
        float32 (..., height, width): the share of the attention on each pixel. Not negative, zero outside the box, and
        summing to one; all zero only where no weight lies on the photo, but all on a crop's padding.
    """
    grids = np.asarray(grids, dtype=np.float64)
    left, top, right, bottom = box
    down = _shares(grids.shape[-2], top, bottom, height)  # (height, rows)
    across = _shares(grids.shape[-1], left, right, width)  # (width, columns)
    totals = (down.sum(axis=0) @ grids @ across.sum(axis=0))[..., None, None]  # what lies on the photo, (..., 1, 1)
    grids = np.divide(grids, totals, out=np.zeros_like(grids), where=totals > 0)
    return down.astype(np.float32) @ grids.astype(np.float32) @ across.T.astype(np.float32)


def _shares(cells: int, start: float, end: float, pixels: int) -> np.ndarray:
    """How a row of `cells` from `start` to `end` shares out its weights among pixels, (pixels, cells)."""
    edges = (np.clip(np.arange(pixels + 1), start, end) - start) / (end - start) * cells  # of the pixels, in cells
    centres = np.arange(-2, cells + 2) + 0.5  # of the cells and of their two mirror images on either side
    distances = np.clip(edges[:, None] - centres, -2, 2)  # (pixels + 1, cells + 4)
    # The integral of the cubic B-spline up to each edge; a pixel has what lies between its two edges.
    terms = [sign * np.maximum(distances + knot, 0) ** 4 for sign, knot in ((1, 2), (-4, 1), (6, 0), (-4, -1))]
    between = np.maximum(np.diff(sum(terms) / 24, axis=0), 0)  # (pixels, cells + 4)
    shares = np.zeros((pixels, cells))
    for number, column in enumerate(between.T):
        cell = (number - 2) % (2 * cells)  # mirrored and mirrored again, as a grid of one cell needs
        shares[:, min(cell, 2 * cells - 1 - cell)] += column
    return shares
