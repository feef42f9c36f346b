"""What training and evaluation measure: the caption metrics of the field, plain statistics, and rewards for training.

`caption_metrics.py` is also a module for `evaluate.load`, which takes the file's path (`CAPTION_METRICS`).
"""

from pathlib import Path

from .cider_reward import CiderDReward
from .exact_meteor import CiderMeteorReward, ExactMeteor
from .scores import caption_statistics, score_captions

CAPTION_METRICS = str(Path(__file__).with_name("caption_metrics.py"))

__all__ = [
    "CAPTION_METRICS",
    "CiderDReward",
    "CiderMeteorReward",
    "ExactMeteor",
    "caption_statistics",
    "score_captions",
]
