"""BLEU, METEOR, ROUGE-L, CIDEr and SPICE of captions, with pycocoevalcap's numbers.

    score_captions({"1.jpg": "a dog runs"}, {"1.jpg": ["a dog is running", "the dog runs"]})

All scores are pycocoevalcap's times 100, as papers print them (BLEU-4 22.5, CIDEr 55.3); nothing else scales them. The
Treebank tokenizer, METEOR and SPICE are Java programs. Without Java, METEOR and SPICE are left out and
`ptb.tokenize_in_python` tokenizes. SPICE also needs the Stanford models in pycocoevalcap's folder
(`python -m pycocoevalcap.spice.get_stanford_models` downloads them).
"""

import json
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

from .exact_meteor import ALPHA, BETA, DELTA, GAMMA
from .ptb import JAVA_TIMEOUT, find_java, pycocoevalcap_folder, tokenize, tokenize_references

logger = logging.get_logger(__name__)

Array = NDArray[np.float64]

# In a locale with decimal commas, METEOR cannot read its own numbers.
_JAVA_OPTIONS = ["-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]
_METEOR_MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])  # weights of equal words, stems, synonyms and paraphrases


class Metric(NamedTuple):
    """A corpus score as a function of sums over images, so that images can be resampled."""

    statistics: Array  # (images, statistics)
    formula: Callable[[Array], Array]  # sums over images (..., statistics) -> pycocoevalcap's score (...)

    def score(self, weights: Array | None = None) -> Array:
        """The corpus score times 100, (...), with `weights` (..., images): how often each image counts."""
        if weights is None:
            weights = np.ones(len(self.statistics))
        return 100 * self.formula(weights @ self.statistics)


def score_captions(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Score one caption per image against the image's references.

    Args:
        predictions: image id -> the predicted caption, which may be empty (it scores 0).
        references: image id -> its captions, any number of them.

    Returns:
        The corpus scores times 100: bleu_1, bleu_2, bleu_3, bleu_4, meteor, rouge_l, cider and, if its files are
        installed, spice. CIDEr weighs words by the number of images they occur in: it is 0 for a single image. Without
        a working Java, meteor and spice are missing and a warning says so.

    Raises:
        ValueError: if the image ids differ, or an image has no reference.
        ImportError: if pycocoevalcap is not installed.
    """
    return {name: float(metric.score()) for name, metric in caption_metrics(predictions, references).items()}


def caption_metrics(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, Metric]:
    """The metrics of [`score_captions`] with per-image statistics, in the order of `references`.

    CIDEr's document frequencies always come from all references; they are not resampled.
    """
    if not references:
        raise ValueError("There are no references to score captions against.")
    for verb, missing in (
        ("lack", references.keys() - predictions.keys()),
        ("hold captions without references for", predictions.keys() - references.keys()),
    ):
        if missing:
            raise ValueError(f"The predictions {verb} {len(missing)} image(s), among them {min(missing)!r}.")
    folder = pycocoevalcap_folder()
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    gts = tokenize_references(references, tokenize)
    captions = tokenize([predictions[image_id] for image_id in gts])
    res = {image_id: [caption] for image_id, caption in zip(gts, captions, strict=True)}

    metrics = _bleu(list(gts.values()), captions)
    if java := find_java():
        programs = {"meteor": _meteor}
        if len(list(folder.glob("spice/lib/stanford-corenlp-3.6.0*.jar"))) == 2:  # the parser and its models
            programs["spice"] = _spice
        for name, program in programs.items():
            try:
                metrics[name] = program([java, *_JAVA_OPTIONS], list(gts.values()), captions)
            except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
                logger.warning(f"{name.upper()} is left out: its Java program failed ({error}).")
    else:
        logger.warning_once("METEOR is left out and a Python tokenizer used: both need Java, and no java on PATH runs.")
    metrics["rouge_l"] = _mean(Rouge().compute_score(gts, res)[1])
    metrics["cider"] = _mean(Cider().compute_score(gts, res)[1])
    return metrics


def _mean(scores: Sequence[float] | Array) -> Metric:
    """The metric that is the mean of each image's score."""
    return Metric(np.stack([scores, np.ones(len(scores))], axis=1), lambda sums: sums[..., 0] / sums[..., 1])


def _bleu(references: list[list[str]], captions: list[str]) -> dict[str, Metric]:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for texts, caption in zip(references, captions, strict=True):
        scorer += (caption, texts)
    rows = [
        [image["testlen"], min((abs(n - image["testlen"]), n) for n in image["reflen"])[1]]  # the closest length
        + image["guess"]
        + image["correct"]
        for image in scorer.ctest
    ]
    statistics = np.array(rows, dtype=np.float64)  # (images, 10)
    return {f"bleu_{n}": Metric(statistics, partial(_bleu_score, n=n)) for n in range(1, 5)}


def _bleu_score(sums: Array, n: int) -> Array:
    """BLEU-n (Papineni et al., 2002, https://aclanthology.org/P02-1040), smoothed as BleuScorer does.

    Args:
        sums: Length of the captions, length of the closest references, n-grams of 1 to 4 words in the captions, and
            those of them that the references have: (..., 10).
    """
    tiny, small = 1e-15, 1e-9
    length, reference_length = sums[..., 0], sums[..., 1]
    precisions = (sums[..., 6 : 6 + n] + tiny) / (sums[..., 2 : 2 + n] + small)  # (..., n)
    ratio = (length + tiny) / (reference_length + small)
    return precisions.prod(axis=-1) ** (1 / n) * np.exp(np.minimum(1 - 1 / ratio, 0))


def _meteor(java: list[str], references: list[list[str]], captions: list[str]) -> Metric:
    """METEOR by the same jar and protocol as pycocoevalcap's wrapper, which can wait forever on a dead process."""
    jar = pycocoevalcap_folder() / "meteor" / "meteor-1.5.jar"
    command = [*java, "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, encoding="utf-8") as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin and stdout
        watchdog = threading.Timer(JAVA_TIMEOUT, process.kill)
        watchdog.start()

        def ask(*fields: str) -> list[float]:
            # The tokenizers split ||| into three tokens: it does not occur inside a field.
            stdin.write(" ||| ".join(fields) + "\n")
            stdin.flush()
            if line := stdout.readline():
                return [float(number) for number in line.split()]
            raise OSError("it ended early")

        try:
            rows = [ask("SCORE", *texts, caption) for texts, caption in zip(references, captions, strict=True)]
        finally:
            watchdog.cancel()
            process.kill()
    statistics = np.array(rows)  # (images, 23)
    if statistics.shape[1:] != (23,):
        raise ValueError(f"it answered {rows[0]}")
    length, reference_length, chunks, matched, reference_matched = statistics[:, [0, 1, 20, 21, 22]].T
    # A caption equal to one of its references is not fragmented.
    chunks[(chunks == 1) & (matched == length) & (reference_matched == reference_length)] = 0
    statistics[:, 20] = chunks
    return Metric(statistics, _meteor_score)


def _meteor_score(sums: Array) -> Array:
    """METEOR 1.5 (see `exact_meteor`) of sums of its statistics.

    Args:
        sums: (..., 23): words of caption and reference; their function words; for each of four matchers the content
            words of caption and reference that it matched, and the function words; chunks; all matched words of both.
    """
    words, function_words = sums[..., 0:2], sums[..., 2:4]  # (..., caption and reference)
    matches = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)  # (..., matcher, content or function, of which)
    weighted = np.einsum("m,k,...mks->...s", _METEOR_MATCHERS, np.array([DELTA, 1 - DELTA]), matches)
    with np.errstate(divide="ignore", invalid="ignore"):  # without a match, the score is 0
        shares = weighted / (DELTA * (words - function_words) + (1 - DELTA) * function_words)
        precision, recall = shares[..., 0], shares[..., 1]
        fragmentation = sums[..., 20] / sums[..., 21:23].mean(axis=-1)
        mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
        return np.nan_to_num(mean * (1 - GAMMA * fragmentation**BETA))


def _spice(java: list[str], references: list[list[str]], captions: list[str]) -> Metric:
    """pycocoevalcap's SPICE, without its cache and without its files in site-packages."""
    rows = zip(references, captions, strict=True)
    entries = [{"image_id": row, "test": caption, "refs": texts} for row, (texts, caption) in enumerate(rows)]
    folder = pycocoevalcap_folder() / "spice"
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "captions.json"), Path(scratch, "scores.json")
        source.write_text(json.dumps(entries))
        command = [*java, "-Xmx8G", "-jar", "spice-1.0.jar", str(source), "-out", str(target), "-subset", "-silent"]
        subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=6 * JAVA_TIMEOUT)
        scores = [entry["scores"]["All"]["f"] for entry in json.loads(target.read_text())]
    return _mean(scores)
