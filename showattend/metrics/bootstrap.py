"""Bootstrap intervals of corpus scores over images (Efron and Tibshirani, 1993, chapter 13; Koehn, 2004,
https://aclanthology.org/W04-3250, for paired differences).
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .scores import Metric

RESAMPLES = 2000
LEVEL = 95.0  # percent
_CHUNK = 10_000_000  # weights in memory at once


class Difference(NamedTuple):
    """How much better one captioner is than another on the same images."""

    value: float
    low: float
    high: float

    @property
    def is_equal(self) -> bool:
        """Whether the interval includes 0, so that neither captioner is called better."""
        return self.low <= 0 <= self.high


def confidence_intervals(metrics: Mapping[str, Metric], seed: int = 0) -> dict[str, tuple[float, float]]:
    """The 95 % percentile interval of each score of [`caption_metrics`]."""
    return {name: _interval(scores) for name, scores in _bootstrap(metrics, seed).items()}


def paired_differences(
    metrics: Mapping[str, Metric], others: Mapping[str, Metric], seed: int = 0
) -> dict[str, Difference]:
    """The differences of the shared scores, `metrics` minus `others`, with their 95 % percentile intervals.

    Both are those of [`caption_metrics`] for the same images in the same order, and are resampled over the same images,
    so that the difficulty of an image cancels out.
    """
    metrics = {name: metric for name, metric in metrics.items() if name in others}
    scores, other_scores = _bootstrap(metrics, seed), _bootstrap({name: others[name] for name in metrics}, seed)
    return {
        name: Difference(float(metric.score() - others[name].score()), *_interval(scores[name] - other_scores[name]))
        for name, metric in metrics.items()
    }


def _bootstrap(metrics: Mapping[str, Metric], seed: int) -> dict[str, NDArray[np.float64]]:
    """Each score over images drawn with replacement: (RESAMPLES,)."""
    [images] = {len(metric.statistics) for metric in metrics.values()}
    random = np.random.default_rng(seed)
    scores: dict[str, list[NDArray[np.float64]]] = {name: [] for name in metrics}
    chunk = max(_CHUNK // images, 1)
    for start in range(0, RESAMPLES, chunk):
        drawn = (random.integers(images, size=images) for _ in range(min(chunk, RESAMPLES - start)))
        weights = np.stack([np.bincount(rows, minlength=images) for rows in drawn]).astype(np.float64)
        for name, metric in metrics.items():
            scores[name].append(metric.score(weights))
    return {name: np.concatenate(parts) for name, parts in scores.items()}


def _interval(scores: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(scores, [50 - LEVEL / 2, 50 + LEVEL / 2])
    return float(low), float(high)
