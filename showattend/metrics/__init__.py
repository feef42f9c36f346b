"""Caption metrics, caption statistics, and rewards for training.

`caption_metrics.py` is also a module for `evaluate.load`, which takes the file's path (`CAPTION_METRICS`).
"""

from pathlib import Path

from .bootstrap import Difference, confidence_intervals, paired_differences
from .cider_reward import CiderDReward
from .exact_meteor import CiderMeteorReward, ExactMeteor
from .scores import Metric, caption_metrics, score_captions
from .statistics import caption_statistics

CAPTION_METRICS = str(Path(__file__).with_name("caption_metrics.py"))

__all__ = [
    "CAPTION_METRICS",
    "CiderDReward",
    "CiderMeteorReward",
    "Difference",
    "ExactMeteor",
    "Metric",
    "caption_metrics",
    "caption_statistics",
    "confidence_intervals",
    "paired_differences",
    "score_captions",
]
