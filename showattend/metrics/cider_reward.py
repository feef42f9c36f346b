"""CIDEr-D as the reward of self-critical sequence training (Rennie et al., 2017, https://arxiv.org/abs/1612.00563)."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .ptb import tokenize_in_python, tokenize_references

Ngram: TypeAlias = tuple[str, ...]

MAX_N = 4  # n-grams of 1 to 4 words
SIGMA = 6.0  # of the Gaussian penalty on a difference in length


class _References(NamedTuple):
    """An image's R captions, prepared for scoring."""

    counts: dict[Ngram, tuple[tuple[int, int], ...]]  # n-gram -> pairs (reference, count)
    inverse_norms: list[list[float]]  # (R, MAX_N)
    lengths: list[int]  # (R,), in bigrams, as pycocoevalcap counts


class CiderDReward:
    """CIDEr-D (Vedantam et al., 2015, https://arxiv.org/abs/1411.5726, section 7) of captions sampled in training.

    The n-grams of the references are counted once; a reward then costs only the caption's own n-grams. Captions are
    tokenized in Python (`ptb.tokenize_in_python`), so the training loop needs no Java. Scores are on pycocoevalcap's
    scale, where a caption equal to all its references scores 10; without `end_token` they equal those of its
    `CiderScorer` over the same images.

    Built over the 6000 training images of Flickr8k, in 5 s, it takes 230 MB; 320 rewards then take 25 ms on one core.

    Args:
        references: image id -> its captions, for all training images, over which document frequencies are counted.
        end_token: append an end token to captions and references, so that a truncated caption ("a man on a") misses the
            final n-grams of the references. Without it, training learns to truncate captions.
    """

    def __init__(self, references: Mapping[str, Sequence[str]], end_token: bool = True) -> None:
        if not references:
            raise ValueError("There are no references to reward captions against.")
        self._end = " <eos>" if end_token else ""
        captions = {
            image_id: [caption + self._end for caption in tokenized]
            for image_id, tokenized in tokenize_references(references, tokenize_in_python).items()
        }
        counts = {
            image_id: [_count_ngrams(caption) for caption in tokenized] for image_id, tokenized in captions.items()
        }
        images_with = Counter(ngram for image in counts.values() for ngram in set().union(*image))
        # Squared inverse document frequencies: the cosine similarity needs nothing else of them.
        self._weights = {ngram: math.log(len(counts) / images) ** 2 for ngram, images in images_with.items()}
        self._unseen_weight = math.log(len(counts)) ** 2

        self._references: dict[str, _References] = {}
        seen: dict[tuple, tuple] = {}

        def shared(equal: tuple) -> tuple:
            """Make equal n-grams and equal rows of counts share memory."""
            return seen.setdefault(equal, equal)

        for image_id, image in counts.items():
            rows = defaultdict(list)
            for reference, count in enumerate(image):
                for ngram, times in count.items():
                    rows[ngram].append((reference, times))
            self._references[image_id] = _References(
                counts={shared(ngram): shared(tuple(row)) for ngram, row in rows.items()},
                inverse_norms=[self._inverse_norms(count) for count in image],
                lengths=[caption.count(" ") for caption in captions[image_id]],
            )

    def reward(self, image_ids: Sequence[str], captions: Sequence[str]) -> NDArray[np.float32]:
        """The CIDEr-D of each caption against its image's references: float32 (captions,), from 0 to 10.

        An empty caption scores 0. ValueError if an image has no references here.
        """
        if len(image_ids) != len(captions):
            raise ValueError(f"There are {len(image_ids)} image ids for {len(captions)} captions.")
        if unknown := set(image_ids) - self._references.keys():
            raise ValueError(f"The reward was built without references of {min(unknown)!r}.")
        pairs = zip(image_ids, tokenize_in_python(captions), strict=True)
        return np.array([self._score(caption, self._references[image_id]) for image_id, caption in pairs], np.float32)

    def _score(self, caption: str, references: _References) -> float:
        if not caption:
            return 0.0
        caption += self._end
        counts = _count_ngrams(caption)
        inverse_norms = self._inverse_norms(counts)
        length = caption.count(" ")
        penalties = [math.exp(-((length - other) ** 2) / (2 * SIGMA**2)) for other in references.lengths]
        total = 0.0
        for ngram, count in counts.items():
            n = len(ngram) - 1
            for reference, reference_count in references.counts.get(ngram, ()):
                clipped = min(count, reference_count) * reference_count
                cosine = clipped * self._weights[ngram] * inverse_norms[n] * references.inverse_norms[reference][n]
                total += cosine * penalties[reference]
        return 10 * total / (MAX_N * len(penalties))

    def _inverse_norms(self, counts: Counter[Ngram]) -> list[float]:
        """1 / the length of the tf-idf vector of n-grams, for n = 1 to MAX_N; 0 where the vector is 0."""
        squares = [0.0] * MAX_N
        for ngram, count in counts.items():
            squares[len(ngram) - 1] += count * count * self._weights.get(ngram, self._unseen_weight)
        return [square and square**-0.5 for square in squares]


def _count_ngrams(caption: str) -> Counter[Ngram]:
    words = caption.split()
    return Counter(chain.from_iterable(zip(*(words[i:] for i in range(n)), strict=False) for n in range(1, MAX_N + 1)))
