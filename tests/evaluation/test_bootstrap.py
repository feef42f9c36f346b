"""Bootstrap intervals against resampling the captions and scoring them again."""

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge

from showattend.metrics import Metric, caption_metrics, confidence_intervals, paired_differences, ptb

SENTENCE = "a the dog dogs cat bird runs running sits on over through grass ball red black"
WORDS = SENTENCE.split()


def draw(seed: int, images: int = 40) -> tuple[dict[str, str], dict[str, list[str]]]:
    random = np.random.default_rng(seed)

    def caption() -> str:
        return " ".join(random.choice(WORDS, size=random.integers(3, 9)))

    references = {str(image): [caption() for _ in range(3)] for image in range(images)}
    predictions = {image: texts[0] if int(image) % 5 == 0 else caption() for image, texts in references.items()}
    return predictions, references


@pytest.mark.skipif(ptb.find_java() is None, reason="METEOR needs Java")
def test_weights_are_repeated_images() -> None:
    """A weighted score equals pycocoevalcap's score of a corpus that repeats each image as often as its weight."""
    predictions, references = draw(0)
    metrics = caption_metrics(predictions, references)
    counts = np.random.default_rng(1).integers(3, size=40)  # some images not at all
    repeated = [str(image) for image, count in enumerate(counts) for _ in range(count)]
    gts = {str(row): references[image] for row, image in enumerate(repeated)}
    res = {str(row): [predictions[image]] for row, image in enumerate(repeated)}
    expected = {f"bleu_{n}": score for n, score in enumerate(Bleu(4).compute_score(gts, res, verbose=0)[0], start=1)}
    expected |= {"meteor": Meteor().compute_score(gts, res)[0], "rouge_l": Rouge().compute_score(gts, res)[0]}
    for name, score in expected.items():
        assert float(metrics[name].score(counts.astype(float))) == pytest.approx(100 * score, rel=1e-9), name


def test_intervals_of_a_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(5, 2, size=400)
    metric = Metric(np.stack([values, np.ones(400)], axis=1), lambda sums: sums[..., 0] / sums[..., 1])
    [(low, high)] = confidence_intervals({"mean": metric}).values()
    error = 196 * values.std() / 20  # of the normal approximation, times 100
    assert low == pytest.approx(100 * values.mean() - error, abs=0.1 * error)
    assert high == pytest.approx(100 * values.mean() + error, abs=0.1 * error)
    assert confidence_intervals({"mean": metric}) == {"mean": (low, high)}
    assert confidence_intervals({"mean": metric}, seed=1) != {"mean": (low, high)}
    monkeypatch.setattr("showattend.metrics.bootstrap._CHUNK", 1500)  # 3 resamples at a time
    assert confidence_intervals({"mean": metric}) == {"mean": pytest.approx((low, high))}


def test_pairs_cancel_what_images_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)  # no Java
    predictions, references = draw(2)
    metrics = caption_metrics(predictions, references)
    same = paired_differences(metrics, metrics)
    assert all(difference == (0, 0, 0) and difference.is_equal for difference in same.values())

    better = predictions | {str(image): references[str(image)][0] for image in range(0, 40, 2)}
    improved = caption_metrics(better, references)
    differences = paired_differences(improved, metrics)
    assert differences.keys() == metrics.keys()
    for name, difference in differences.items():
        assert difference.value == float(improved[name].score() - metrics[name].score()) > 0
        assert 0 < difference.low < difference.value < difference.high and not difference.is_equal
        (low, high), (other_low, other_high) = (confidence_intervals(m)[name] for m in (improved, metrics))
        assert difference.high - difference.low < high - low + other_high - other_low
    worse = paired_differences(metrics, improved)
    assert worse["cider"].high == pytest.approx(-differences["cider"].low)
    assert list(paired_differences({"cider": metrics["cider"]}, metrics)) == ["cider"]
