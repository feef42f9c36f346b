"""METEOR with exact matches only, in Python, as a reward in training.

The formula of METEOR 1.5 (Denkowski and Lavie, 2014, https://aclanthology.org/W14-3348) with its parameters for
English, without the stems, synonyms and paraphrases that need its Java program. It differs in one more way: METEOR
waives the penalty for fragmentation only for a caption that equals the reference; here, an unbroken part of the
reference is enough ("a dog runs" of "a dog runs through the grass"). The captioner in `checkpoints/` was trained so.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .cider_reward import CiderDReward
from .ptb import tokenize_in_python, tokenize_references

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75  # recall's share; the penalty's shape and height; content's weight
_WORDS = """
    the to of and a in that for is on 's it with was as at he by be from have has are his but an this not they who their
    which were or s its after also up when there all out her people she two can first over other into some so no three
    one them him while
"""
FUNCTION_WORDS = frozenset(_WORDS.split())


class ExactMeteor:
    """METEOR in which a word matches only equal words of a reference; `references` are each image's captions."""

    def __init__(self, references: Mapping[str, Sequence[str]]) -> None:
        self._references = {
            image_id: [caption.split() for caption in captions]
            for image_id, captions in tokenize_references(references, tokenize_in_python).items()
        }

    def score(self, image_ids: Sequence[str], captions: Sequence[str]) -> NDArray[np.float32]:
        """Each caption's best score over its image's references: float32 (captions,), from 0 to 1."""
        pairs = zip(image_ids, tokenize_in_python(captions), strict=True)
        return np.array(
            [max(_score(caption.split(), own) for own in self._references[image_id]) for image_id, caption in pairs],
            np.float32,
        )


class CiderMeteorReward(CiderDReward):
    """CIDEr-D (0 to 10) plus `meteor_weight` times METEOR with exact matches (0 to 1).

    CIDEr-D alone favours short captions and a small vocabulary; METEOR weighs recall more than precision.
    """

    def __init__(self, references: Mapping[str, Sequence[str]], meteor_weight: float) -> None:
        super().__init__(references)
        self._meteor = ExactMeteor(references)
        self._meteor_weight = meteor_weight

    def reward(self, image_ids: Sequence[str], captions: Sequence[str]) -> NDArray[np.float32]:
        return super().reward(image_ids, captions) + self._meteor_weight * self._meteor.score(image_ids, captions)


def _score(words: Sequence[str], reference: Sequence[str]) -> float:
    matched, chunks = _match(words, reference)
    if not matched:
        return 0.0
    precision, recall = _weight(matched) / _weight(words), _weight(matched) / _weight(reference)
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    whole = chunks == 1 and len(matched) == len(words)
    return mean * (1 - (0 if whole else GAMMA * (chunks / len(matched)) ** BETA))


def _match(words: Sequence[str], reference: Sequence[str]) -> tuple[list[str], int]:
    """The words that the reference has, each of its words used once, and how many unbroken runs they make."""
    free = dict(enumerate(reference))
    matched: list[str] = []
    chunks, last, broken = 0, -1, True
    for word in words:
        places = [place for place, other in free.items() if other == word]
        if not places:
            broken = True
            continue
        place = last + 1 if last + 1 in places else places[0]
        chunks += broken or place != last + 1
        del free[place]
        matched.append(word)
        last, broken = place, False
    return matched, chunks


def _weight(words: Sequence[str]) -> float:
    return sum(1 - DELTA if word in FUNCTION_WORDS else DELTA for word in words)
