"""The caption metrics as a module for `evaluate`.

evaluate.load("showattend/metrics/caption_metrics.py").compute(predictions=[...], references=[[...], ...])
"""

import datasets
import evaluate

from showattend.metrics.scores import score_captions

_DESCRIPTION = "BLEU-1 to BLEU-4, METEOR, ROUGE-L, CIDEr and SPICE as pycocoevalcap computes them, times 100."
_INPUTS = """
Args:
    predictions (list[str]): one caption per image.
    references (list[list[str]]): the reference captions of each image, any number of them.
Returns:
    dict[str, float]: see score_captions.
"""
_CITATION = """@article{chen2015microsoft,
  title={Microsoft {COCO} Captions: Data Collection and Evaluation Server},
  author={Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh
    and Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  journal={arXiv preprint arXiv:1504.00325},
  year={2015}
}"""


class CaptionMetrics(evaluate.Metric):
    """`score_captions` for `evaluate`: takes a list of predicted captions and a list of lists of references."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            inputs_description=_INPUTS,
            citation=_CITATION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
            reference_urls=["https://github.com/salaniz/pycocoevalcap"],
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        rows = [str(row) for row in range(len(predictions))]
        return score_captions(dict(zip(rows, predictions, strict=True)), dict(zip(rows, references, strict=True)))
