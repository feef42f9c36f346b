"""BLEU, METEOR, ROUGE-L, CIDEr and SPICE of captions, with pycocoevalcap's numbers.

    score_captions({"1.jpg": "a dog runs"}, {"1.jpg": ["a dog is running", "the dog runs"]})

This module is the one place that scales: all scores are pycocoevalcap's times 100, as papers print them (BLEU-4 22.5,
CIDEr 55.3). The Treebank tokenizer, METEOR and SPICE are Java programs. Without Java, METEOR and SPICE are left out and
`ptb.tokenize_in_python` tokenises. SPICE is scored where the Stanford models that it needs lie in pycocoevalcap
(`python -m pycocoevalcap.spice.get_stanford_models` downloads them).
"""

import json
import re
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE

from transformers.utils import logging

from .ptb import JAVA_TIMEOUT, find_java, pycocoevalcap_folder, tokenize, tokenize_in_python, tokenize_references

logger = logging.get_logger(__name__)

# Words that an English caption hardly ends in: one that does was cut short.
_DANGLING = re.compile(
    r"(?:^| )(?:a|an|the|his|its|their|of|with|in|on|at|to|for|from|into|onto|between|and|or|while|as|is|are|that)$"
)
_REPEATED = re.compile(r"(?:^| )(\S+) \1(?: |$)")

# METEOR cannot read the numbers that it wrote where the locale has decimal commas.
_JAVA_OPTIONS = ["-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]


def score_captions(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Score one caption an image against the captions that people wrote for it.

    Args:
        predictions: image id -> the predicted caption, which may be empty (it scores 0).
        references: image id -> its captions, any number of them.

    Returns:
        The corpus scores times 100: bleu_1, bleu_2, bleu_3, bleu_4, meteor, rouge_l, cider and, where its files are
        there, spice. CIDEr weighs words by the images they occur in: it is 0 for a single image. Without a Java that
        works, meteor and spice are missing and one line says so.

    Raises:
        ValueError: if the two do not hold the same image ids, or an image has no reference.
        ImportError: if pycocoevalcap is not installed.

    1000 images with 5 captions each take 13 s of processor time: 1 s in Python, 12 s in Java, of which 8 s are METEOR's
    start. Without Java they take 1 s.
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
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    gts = tokenize_references(references, tokenize)
    captions = tokenize([predictions[image_id] for image_id in gts])
    res = {image_id: [caption] for image_id, caption in zip(gts, captions, strict=True)}

    bleu, _ = Bleu(4).compute_score(gts, res, verbose=0)
    scores = {f"bleu_{n}": score for n, score in enumerate(bleu, start=1)}
    if java := find_java():
        programs = {"meteor": _meteor}
        if len(list(folder.glob("spice/lib/stanford-corenlp-3.6.0*.jar"))) == 2:  # the parser and its models
            programs["spice"] = _spice
        for name, program in programs.items():
            try:
                scores[name] = program([java, *_JAVA_OPTIONS], list(gts.values()), captions)
            except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
                logger.warning(f"{name.upper()} is left out: its Java program failed ({error}).")
    else:
        logger.warning_once("METEOR is left out and a Python tokenizer used: both need Java, and no java on PATH runs.")
    scores["rouge_l"], _ = Rouge().compute_score(gts, res)
    scores["cider"], _ = Cider().compute_score(gts, res)
    return {name: 100 * float(score) for name, score in scores.items()}


def _meteor(java: list[str], references: list[list[str]], captions: list[str]) -> float:
    """pycocoevalcap's METEOR, which can wait for ever on a process that died: the same jar, the same questions."""
    jar = pycocoevalcap_folder() / "meteor" / "meteor-1.5.jar"
    command = [*java, "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, encoding="utf-8") as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin and stdout
        watchdog = threading.Timer(JAVA_TIMEOUT, process.kill)
        watchdog.start()

        def answer() -> str:
            if line := stdout.readline():
                return line.strip()
            raise OSError("it ended early")

        def ask(*fields: str) -> str:
            # The tokenizers split ||| into three tokens: it does not occur inside a field.
            stdin.write(" ||| ".join(fields) + "\n")
            stdin.flush()
            return answer()

        try:
            statistics = [ask("SCORE", *texts, caption) for texts, caption in zip(references, captions, strict=True)]
            ask("EVAL", *statistics)  # answers with each caption's score, then the corpus score
            return float([answer() for _ in captions][-1])
        finally:
            watchdog.cancel()
            process.kill()


def _spice(java: list[str], references: list[list[str]], captions: list[str]) -> float:
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
    return sum(scores) / len(scores)


def caption_statistics(predictions: Mapping[str, str]) -> dict[str, float]:
    """How varied and how readable the captions are, whatever the images show.

    Args:
        predictions: image id -> the predicted caption.

    Returns:
        distinct_words: the number of different words in all captions.
        distinct_captions: the number of different captions.
        mean_length: words a caption.
        repeated: percent of captions with a word twice in a row.
        dangling: percent of captions that end in a function word such as "a", "of" or "with"; of those that people
            wrote for Flickr8k, 0.6 do ("looking on").
    """
    if not predictions:
        raise ValueError("There are no captions to describe.")
    captions = tokenize_in_python(list(predictions.values()))

    def percent(pattern: re.Pattern[str]) -> float:
        return 100 * sum(bool(pattern.search(caption)) for caption in captions) / len(captions)

    words = [word for caption in captions for word in caption.split()]
    return {
        "distinct_words": len(set(words)),
        "distinct_captions": len(set(captions)),
        "mean_length": len(words) / len(captions),
        "repeated": percent(_REPEATED),
        "dangling": percent(_DANGLING),
    }
