"""The caption metrics against pycocoevalcap's own, with Java and without; the CIDEr-D reward against its scorer."""

import json
import os
import shutil
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer import ptbtokenizer
from transformers.utils.logging import warning_once

from showattend.metrics import (
    CAPTION_METRICS,
    CiderDReward,
    CiderMeteorReward,
    ExactMeteor,
    caption_statistics,
    ptb,
    score_captions,
    scores,
)

needs_java = pytest.mark.skipif(
    ptb.find_java() is None, reason="the tokenizer, METEOR and SPICE of the field need Java"
)

REFERENCES = {
    "lake.jpg": ["A boy rows a small boat on a lake .", "Someone is rowing across the lake", "a boat on calm water"],
    "cat.jpg": ['The cat\'s asleep on a "red" sofa!', "A grey cat doesn't move from the couch (its couch)."],
    "café.jpg": [
        "Two women drink coffee outside a café ; it 's sunny",
        "Women at a table",
        "",
        "two friends with coffee",
    ],
    "bike.jpg": ["A man in a T-shirt rides a bike past Mr. Smith 's shop .", "a cyclist on the street at 3:30"],
    "kite.jpg": ["a girl flies a kite | on the beach", "The girl , on a beach , holds a kite - it is yellow"],
}
PREDICTIONS = {
    "kite.jpg": "a girl on the beach ||| with a kite",
    "lake.jpg": "A boy in a boat on a lake.",
    "cat.jpg": "a cat cannot sleep\non a couch",
    "café.jpg": "two women at a café with",
    "bike.jpg": "",
}
ODD_CAPTIONS = [
    "", " ", ".", "|||", "a\tdog\nruns\r\nfast", "a dog ", "\u2028dogs\u00a0run\u2028", "naïve café", "don't",
    "we'll say I'm", "they gonna cannot", "a (big) [red] {hat}", "the U.S. flag", "St. Mary's at 3:30",
    "slip 'n' slide", "dogs' tails", "\u201ctwo\u201d \u2018birds\u2019 \u2013 one \u2026 stone", "10% of 1,000 & #7",
    "it's 5 o'clock", "an ant 's-eye-view", "well-known",
]  # fmt: skip


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    warning_once.cache_clear()


def fake_java(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Put a `java` first on PATH that knows -version and runs the shell `script` for all else."""
    java = folder / "java"
    java.write_text(f'#!/bin/sh\ncd "{folder}"\n[ "$1" = -version ] && exit 0\n{script}\n')
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return java


def pycocoevalcap_scores(references: dict[str, list[str]], predictions: dict[str, list[str]]) -> dict[str, float]:
    """The scores of COCOEvalCap for tokenized captions, except METEOR and SPICE."""
    bleu = Bleu(4).compute_score(references, predictions, verbose=0)[0]
    rouge, cider = (scorer.compute_score(references, predictions)[0] for scorer in (Rouge(), Cider()))
    return {f"bleu_{n}": 100 * bleu[n - 1] for n in range(1, 5)} | {"rouge_l": 100 * rouge, "cider": 100 * cider}


def written(captions: dict[str, list[str]]) -> dict[str, list[dict[str, str]]]:
    """Captions as PTBTokenizer takes them; without blank ones, which score_captions leaves out."""
    return {image: [{"caption": text} for text in texts if text] for image, texts in captions.items()}


@needs_java
def test_scores_are_those_of_pycocoevalcap(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    # Also in a locale with decimal commas, and without output on the terminal.
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    scores = score_captions(PREDICTIONS, REFERENCES)
    assert capfd.readouterr() == ("", "")
    monkeypatch.delenv("JAVA_TOOL_OPTIONS")

    references = ptbtokenizer.PTBTokenizer().tokenize(written(REFERENCES))
    predictions = {image: [""] for image in references}  # its own zip loses a blank last line
    predictions |= ptbtokenizer.PTBTokenizer().tokenize(written({k: [v] for k, v in PREDICTIONS.items() if v}))
    expected = pycocoevalcap_scores(references, predictions)
    expected["meteor"] = 100 * Meteor().compute_score(references, predictions)[0]
    scores.pop("spice", None)
    assert scores == pytest.approx(expected, rel=1e-9)
    assert min(scores.values()) > 1


def test_without_java_the_rest_is_scored(no_java: None, caplog: pytest.LogCaptureFixture) -> None:
    scores = score_captions(PREDICTIONS, REFERENCES)
    references = {k: [t for t in ptb.tokenize_in_python(v) if t] for k, v in REFERENCES.items()}
    predictions = {k: ptb.tokenize_in_python([v]) for k, v in PREDICTIONS.items()}
    assert scores == pytest.approx(pycocoevalcap_scores(references, predictions), rel=1e-9)
    score_captions(PREDICTIONS, REFERENCES)
    assert [record.message for record in caplog.records] == [
        "METEOR is left out and a Python tokenizer used: both need Java, and no java on PATH runs."
    ]


@needs_java
def test_tokenizers_agree() -> None:
    plain = [" ".join(caption.split()) for caption in ODD_CAPTIONS]
    theirs = ptbtokenizer.PTBTokenizer().tokenize({row: [{"caption": text}] for row, text in enumerate(plain)})
    assert ptb.tokenize(ODD_CAPTIONS) == [text for row in range(len(plain)) for text in theirs[row]]
    assert ptb.tokenize(ODD_CAPTIONS) == ptb.tokenize_in_python(ODD_CAPTIONS)


def test_python_tokenizer(no_java: None) -> None:
    captions = ["A \"big\" dog's (wet) nose, isn't it?", "CANNOT\nstop -- Mr. T-shirt...", "!"]
    assert ptb.tokenize(captions) == ["a big dog 's -lrb- wet -rrb- nose is n't it", "can not stop mr. t-shirt", ""]
    assert frozenset(ptbtokenizer.PUNCTUATIONS) == ptb.PUNCTUATION


def test_a_java_that_dies_costs_only_what_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_java(tmp_path, monkeypatch, "exit 1")
    scores = score_captions(PREDICTIONS, REFERENCES)
    assert "meteor" not in scores and scores["cider"] > 1
    assert "METEOR is left out: its Java program failed" in caplog.text
    assert "using the Python one" in caplog.text


def test_a_java_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = "import pathlib, time; time.sleep(20); pathlib.Path('was-let-run').touch()"
    fake_java(tmp_path, monkeypatch, f'echo $$ >> pids; exec "{sys.executable}" -c "{program}"')
    monkeypatch.setattr(ptb, "JAVA_TIMEOUT", 0.5)
    monkeypatch.setattr(scores, "JAVA_TIMEOUT", 0.5)
    assert "meteor" not in score_captions(PREDICTIONS, REFERENCES)
    assert "METEOR is left out" in caplog.text
    assert not (tmp_path / "was-let-run").exists()
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 3  # references, predictions, METEOR
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_a_java_that_does_not_run_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = fake_java(tmp_path, monkeypatch, "")
    java.write_text("#!/bin/sh\nexit 1\n")
    assert ptb.find_java() is None


def test_spice_is_read_from_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = [{"scores": {"All": {"f": 0.25}}}, {"scores": {"All": {"f": 0.75}}}]
    (tmp_path / "result.json").write_text(json.dumps(result))
    script = 'while [ "$1" != spice-1.0.jar ]; do shift; done; cp "$2" captions.json; cp result.json "$4"'
    java = fake_java(tmp_path, monkeypatch, script)
    assert scores._spice([str(java)], [["a dog"], ["a cat", "cats"]], ["dog", ""]).score() == 50
    assert json.loads((tmp_path / "captions.json").read_text()) == [
        {"image_id": 0, "test": "dog", "refs": ["a dog"]},
        {"image_id": 1, "test": "", "refs": ["a cat", "cats"]},
    ]


def test_empty_predictions_score_zero(no_java: None) -> None:
    scores = score_captions(dict.fromkeys(REFERENCES, ""), REFERENCES)
    assert all(score == pytest.approx(0, abs=1e-4) for score in scores.values()), scores


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ({"a": "x"}, {"a": ["x"], "b": ["y"]}, "predictions lack 1 .*'b'"),
        ({"a": "x", "c": "y"}, {"a": ["x"]}, "hold captions without references for 1 .*'c'"),
        ({"a": "x"}, {"a": "a dog"}, "references of 'a' must be a list"),
        ({"a": "x"}, {"a": []}, "'a' has no reference"),
        ({"a": "x"}, {"a": [" . "]}, "'a' has no reference"),
        ({}, {}, "no references"),
    ],
)
def test_bad_input_is_refused(
    predictions: dict[str, str], references: dict[str, list[str]], message: str, no_java: None
) -> None:
    with pytest.raises(ValueError, match=message):
        score_captions(predictions, references)


def test_evaluate_loads_the_module(no_java: None) -> None:
    metric = evaluate.load(CAPTION_METRICS)
    images = list(REFERENCES)
    predictions, references = [PREDICTIONS[i] for i in images], [REFERENCES[i] for i in images]
    expected = score_captions(PREDICTIONS, REFERENCES)
    assert metric.compute(predictions=predictions, references=references) == pytest.approx(expected)
    metric.add_batch(predictions=predictions[:2], references=references[:2])
    metric.add_batch(predictions=predictions[2:], references=references[2:])
    assert metric.compute() == pytest.approx(expected)
    with pytest.raises(ValueError, match="Mismatch in the number"):
        metric.compute(predictions=predictions[:2], references=references)


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(ModuleNotFoundError, match="pycocoevalcap"):
        score_captions(PREDICTIONS, REFERENCES)
    assert CiderDReward(REFERENCES).reward(["lake.jpg"], ["a boat"]) > 0


def test_statistics() -> None:
    captions = ["A dog runs.", "a dog runs", "the the cat on a", "a man in a hat in", "that cat is a bat", ""]
    assert caption_statistics(dict(zip("abcdef", captions, strict=True))) == {
        "distinct_words": 12,
        "distinct_captions": 5,
        "mean_length": 22 / 6,
        "repeated": pytest.approx(100 / 6),
        "dangling": pytest.approx(200 / 6),
    }
    with pytest.raises(ValueError, match="no captions"):
        caption_statistics({})


def test_words_that_no_reference_has() -> None:
    predictions = {"a": "A dog runs on the grass.", "b": "a blue and blue cat"}
    references = {"a": ["The dog runs", "dogs on grass"], "b": ["a cat", "it is Blue!"], "c": ["not captioned"]}
    assert caption_statistics(predictions, references)["unreferenced"] == 0
    assert caption_statistics(predictions)["repeated"] == 50  # "blue"; "a" may come twice
    # Of dog, runs, grass; blue, blue, cat: "dogs" is another word than "dog".
    references = {"a": ["A dog runs", "a meadow"], "b": ["cats"]}
    assert caption_statistics(predictions, references)["unreferenced"] == pytest.approx(100 * 4 / 6)
    assert caption_statistics({"a": "on a"}, references)["unreferenced"] == 0
    with pytest.raises(KeyError, match="z"):
        caption_statistics({"z": "a dog"}, references)


def test_reward_is_the_score_of_pycocoevalcap() -> None:
    scorer = CiderScorer()
    for image, captions in REFERENCES.items():
        references = [text for text in ptb.tokenize_in_python(captions) if text]
        scorer += (ptb.tokenize_in_python([PREDICTIONS[image]])[0], references)
    _, expected = scorer.compute_score()
    images = list(REFERENCES)
    reward = CiderDReward(REFERENCES, end_token=False)
    scores = reward.reward(images, [PREDICTIONS[image] for image in images])
    assert scores.dtype == np.float32 and scores.shape == (5,)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    assert np.count_nonzero(scores) == 4

    # A reward does not depend on the other captions of the batch: the corpus is fixed.
    batch = ["kite.jpg", "lake.jpg", "kite.jpg"]
    rewards = reward.reward(batch, [PREDICTIONS["kite.jpg"], PREDICTIONS["lake.jpg"], "a kite"])
    np.testing.assert_array_equal(rewards[:2], [scores[4], scores[0]])
    assert rewards[2] not in (0, rewards[0])


def test_reward_of_a_reference_is_ten() -> None:
    alike = {"a": ["one small red boat ."] * 2, "b": ["two dogs run fast"], "c": ["three birds sit still"]}
    for end_token in (False, True):
        scores = CiderDReward(alike, end_token).reward(["a", "b", "b"], ["One small red boat", "birds", ""])
        assert scores.tolist() == [pytest.approx(10), 0, 0]


def test_end_token_penalises_truncated_captions() -> None:
    references = {"a": ["a man stands on a hill"], "b": ["a dog sits on a chair"], "c": ["two birds in a tree"]}
    captions = ["a man stands on a", "a man stands on a hill"]
    cut, whole = CiderDReward(references).reward(["a", "a"], captions)
    cut_without, whole_without = CiderDReward(references, end_token=False).reward(["a", "a"], captions)
    assert whole == whole_without == pytest.approx(10)
    assert cut < cut_without - 1


def test_reward_refuses_what_it_cannot_score() -> None:
    reward = CiderDReward(REFERENCES)
    with pytest.raises(ValueError, match="2 image ids for 1 captions"):
        reward.reward(["lake.jpg", "cat.jpg"], ["a boat"])
    with pytest.raises(ValueError, match="without references of 'dog"):
        reward.reward(["lake.jpg", "dog.jpg"], ["a boat", "a dog"])
    with pytest.raises(ValueError, match="no references"):
        CiderDReward({})
    assert reward.reward([], []).shape == (0,)


def test_meteor_of_exact_matches() -> None:
    meteor = ExactMeteor({"dog": ["A dog runs through the grass.", "a cat"], "cat": ["a cat on a ball on a cat"]})

    def score(image_id: str, caption: str) -> float:
        return float(meteor.score([image_id], [caption])[0])

    assert score("dog", "a dog runs through the grass") == 1  # no penalty for a whole caption
    assert score("dog", "birds") == score("dog", "") == 0
    # Nor for an unbroken part, of a weight of 1.75 of 3.5, where METEOR has one.
    assert score("dog", "a dog runs") == pytest.approx(0.5 / (0.85 + 0.15 * 0.5))
    # "a" weighs 0.25, "dog" and "sits" 0.75: 1.0 of the caption's 1.75 match, of the reference's 3.5; one run of 2.
    precision, recall = 1 / 1.75, 1 / 3.5
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    assert score("dog", "a dog sits") == pytest.approx(mean * (1 - 0.6 * 0.5**0.2))
    # Each word of a reference counts once, and a gap begins another run: "a cat", "ball".
    precision, recall = 1.75 / 3.25, 1.75 / 3.5
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    assert score("cat", "a cat red red ball") == pytest.approx(mean * (1 - 0.6 * (2 / 3) ** 0.2), rel=1e-6)


def test_meteor_in_the_reward() -> None:
    references = {"dog": ["a dog runs through the grass"], "cat": ["a cat sits on a ball"]}
    asked = ["dog", "cat", "cat"], ["a dog runs", "a cat sits on a ball", "birds"]
    expected = CiderDReward(references).reward(*asked) + 5 * ExactMeteor(references).score(*asked)
    assert CiderMeteorReward(references, 5).reward(*asked).tolist() == expected.tolist()
    assert expected[1] == pytest.approx(10 + 5) and expected[2] == 0
