"""Do the attention maps mean anything? Cover the cells that a noun looked at, and see how far its probability falls.

A caption is generated, and read again (teacher forcing) with K cells of the grid covered. If the map of a noun shows
what the noun depends on, its log probability falls far more than with K random cells covered, with the K cells that it
looked at least, or with those of another noun of the caption.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor

from .maps import tokens_of_words

# Which cells are covered: those that the noun looked at most or least, random ones, and those that another noun of the
# caption looked at most. OWN is MOST over only the nouns of captions that have another noun, for comparison with OTHER.
MOST, RANDOM, LEAST, OWN, OTHER = "most", "random", "least", "own", "other_noun"
_FUNCTION_WORDS = """
    a an the and or of in on at to by for from with into onto over under through near behind up down out off as while is
    are was be being has have his her its their he she it they that who
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
RESAMPLES = 2000


@cache
def frequent_nouns() -> frozenset[str]:
    """Nouns for what can be seen, out of the 1,000 most frequent words of Flickr8k's training captions.

    They were picked by hand, without words that are as often verbs or adjectives (run, orange) and without nouns that
    name nothing visible (front, side, trick). The 416 nouns are a quarter of all words of the training captions.
    """
    return frozenset((files("showattend.attention") / "nouns.txt").read_text().split())


class Word(NamedTuple):
    """A word of a generated caption."""

    text: str
    tokens: list[int]  # their steps
    weights: np.ndarray  # (positions,): the attention before the word, averaged over its tokens
    gate: float  # the share of the context that reaches the LSTM: 1 without a gate


@dataclass
class Measurement:
    """The measurements: one number per noun, word or pair of words, with the index of its image."""

    falls: dict[tuple[str, int], list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    total_variations: list[tuple[int, float]] = field(default_factory=list)  # between neighbouring words
    entropies: list[tuple[int, float]] = field(default_factory=list)  # in nats
    function_words: list[tuple[int, float, float]] = field(default_factory=list)  # gate if a function word, gate
    positions: int = 0
    images: int = 0

    def summary(self, seed: int = 0) -> dict[str, Any]:
        """Means with 95 % bootstrap intervals; images are resampled, as the nouns of a caption are not independent."""
        random = np.random.default_rng(seed)
        counts = random.multinomial(self.images, np.full(self.images, 1 / self.images), size=RESAMPLES)

        def mean(rows: Sequence[tuple[int, float]]) -> np.ndarray:
            """The mean, then that of every resample."""
            return ratio([(image, value, 1) for image, value in rows])

        def ratio(rows: Sequence[tuple[int, float, float]]) -> np.ndarray:
            image, *values = np.array(rows, dtype=np.float64).reshape(-1, 3).T
            above, below = (np.bincount(image.astype(int), value, minlength=self.images) for value in values)
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.append(above.sum() / below.sum(), (counts @ above) / (counts @ below))

        def described(estimates: np.ndarray) -> dict[str, Any]:
            low, high = np.nanpercentile(estimates[1:], [2.5, 97.5])
            return {"mean": round(estimates[0], 4), "interval": [round(low, 4), round(high, 4)]}

        means = {key: mean(rows) for key, rows in self.falls.items()}
        num_cells = sorted({number for _, number in means})
        return {
            "images": self.images,
            "nouns": len(self.falls[MOST, num_cells[0]]) if num_cells else 0,
            "positions": self.positions,
            "falls": [
                {"cells": number, "covered": covered, "nouns": len(self.falls[covered, number])} | described(estimates)
                for (covered, number), estimates in means.items()
            ],
            "ratios": [
                {"cells": number, "ratio": f"{above} / {below}"}
                | described(means[above, number] / means[below, number])
                for number in num_cells
                for above, below in ((MOST, RANDOM), (OWN, OTHER))
                if (above, number) in means
            ],
            "maps": {
                "total_variation": described(mean(self.total_variations)),
                "entropy": described(mean(self.entropies)) | {"maximum": round(float(np.log(self.positions)), 4)},
                "function_words": described(ratio(self.function_words)),
            },
        }


@torch.inference_mode()
def measure_occlusion(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    batches: Iterable[Sequence[Any]],
    num_cells: Sequence[int] = (5, 10, 20),
    cover_pixels: bool = False,
    seed: int = 0,
    **generation: Any,
) -> Measurement:
    """Caption images and measure how far the log probability of each noun falls when cells are covered.

    Args:
        batches: Images in batches, of any kind that the processor reads.
        num_cells: How many cells are covered, each in turn.
        cover_pixels: Grey out the pixels of the cells and encode the image again, which takes far longer. Otherwise the
            features of the cells are replaced by the image's mean feature.
    """
    random = np.random.default_rng(seed)
    measured = Measurement()
    for images in batches:
        pixel_values = processor(images=images, return_tensors="pt")["pixel_values"].to(model.device)
        features = model.encoder(pixel_values=pixel_values).last_hidden_state  # (images, positions, encoder_dim)
        measured.positions = features.shape[1]
        for number in num_cells:
            if not 0 < number < measured.positions:
                raise ValueError(f"`num_cells` {number} must be between 1 and {measured.positions - 1}.")
        sequences = model.generate(encoder_outputs=(features,), **generation)  # (images, tokens)
        log_probabilities, words_of_images = _read(model, processor, features, sequences)

        rows: list[_Row] = []
        for image, words in enumerate(words_of_images):
            _describe_maps(measured, measured.images + image, words)
            for word, covered, cells in _covers(words, random):
                rows += [_Row(image, word.tokens, covered, cells[:number]) for number in num_cells]
        rows.sort(key=lambda row: row.tokens[-1])  # nothing is read beyond the last noun of a part
        for start in range(0, len(rows), 128):
            part = rows[start : start + 128]
            owners = torch.tensor([row.image for row in part])
            mask = torch.zeros(len(part), measured.positions, dtype=torch.bool)
            for number, row in enumerate(part):
                mask[number, row.cells.copy()] = True  # torch does not take a reversed array
            if cover_pixels:
                cells = mask.unflatten(1, model.encoder.grid_shape(*pixel_values.shape[2:]))
                occluded = model.encoder(pixel_values=_greyed(pixel_values[owners], cells))[0]
            else:
                mean = features.mean(dim=1, keepdim=True)[owners]  # (rows, 1, encoder_dim)
                occluded = torch.where(mask.to(model.device).unsqueeze(-1), mean, features[owners])
            after, _ = _teacher_forced(model, occluded, sequences[owners, : part[-1].tokens[-1] + 2])
            for number, row in enumerate(part):
                fall = float((log_probabilities[row.image, row.tokens] - after[number, row.tokens]).sum())
                for kind in row.covered:
                    measured.falls[kind, len(row.cells)].append((measured.images + row.image, fall))
        measured.images += len(images)
    return measured


class _Row(NamedTuple):
    """One reading of a caption with some cells covered."""

    image: int
    tokens: list[int]
    covered: tuple[str, ...]
    cells: np.ndarray


def _covers(words: Sequence[Word], random: np.random.Generator) -> Iterator[tuple[Word, tuple[str, ...], np.ndarray]]:
    """The orders in which cells are covered for each noun of a caption: all positions, the first to cover first."""
    found = [word for word in words if word.text in frequent_nouns()]
    for number, word in enumerate(found):
        # The next noun of the caption; the first one for the last.
        others = [other for other in found[number + 1 :] + found[:number] if other.text != word.text]
        most = np.argsort(-word.weights, kind="stable")
        yield word, (MOST, OWN) if others else (MOST,), most
        yield word, (RANDOM,), random.permutation(len(most))
        yield word, (LEAST,), most[::-1]
        if others:
            yield word, (OTHER,), np.argsort(-others[0].weights, kind="stable")


def _read(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    features: torch.Tensor,
    sequences: torch.Tensor,
) -> tuple[np.ndarray, list[list[Word]]]:
    """The log probability of each token, (captions, steps), and the words of each caption."""
    gates: list[torch.Tensor] = []
    handle = None
    if model.config.context_gate:
        handle = model.decoder.f_beta.register_forward_hook(lambda module, inputs, output: gates.append(output))
    log_probabilities, weights = _teacher_forced(model, features, sequences)
    shares = np.ones(log_probabilities.shape)
    if handle is not None:
        handle.remove()
        shares = torch.cat(gates, dim=1).sigmoid().float().cpu().numpy()  # (captions, steps)
    captions = []
    for ids, own_weights, own_shares in zip(sequences[:, 1:].tolist(), weights, shares, strict=True):
        texts = processor.decode(ids, skip_special_tokens=True).split()
        captions.append(
            [
                Word(text.strip(".,"), tokens, own_weights[tokens].mean(axis=0), float(own_shares[tokens].mean()))
                for text, tokens in zip(texts, tokens_of_words(processor, ids), strict=True)
            ]
        )
    return log_probabilities, captions


def _teacher_forced(
    model: ShowAttendForConditionalGeneration, features: torch.Tensor, sequences: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Log probability of each token after `[CLS]`, (captions, steps), and its attention, (captions, steps, cells)."""
    outputs = model(encoder_outputs=(features,), decoder_input_ids=sequences[:, :-1], use_cache=False)
    log_probabilities = outputs.logits.float().log_softmax(dim=-1).gather(2, sequences[:, 1:, None]).squeeze(2)
    return log_probabilities.cpu().numpy(), outputs.cross_attentions[0][:, 0].float().cpu().numpy()


def _greyed(pixel_values: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """The images with some cells (images, rows, columns) set to 0, to which normalisation takes the mean colour."""
    pixels = F.interpolate(cells[:, None].float(), pixel_values.shape[2:]).bool()  # (images, 1, height, width)
    return pixel_values.masked_fill(pixels.to(pixel_values.device), 0)


def _describe_maps(measured: Measurement, image: int, words: Sequence[Word]) -> None:
    for word in words:
        entropy = -float((word.weights * np.log(word.weights.clip(min=1e-12))).sum())
        measured.entropies.append((image, entropy))
        measured.function_words.append((image, word.gate * (word.text in FUNCTION_WORDS), word.gate))
    for left, right in pairwise(words):
        measured.total_variations.append((image, float(abs(left.weights - right.weights).sum()) / 2))
