import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_flickr import ROOT, environment, make_folder

from showattend.checkpoints import load_captioner
from showattend.commands import evaluate
from showattend.evaluation.evaluate import evaluate_checkpoint
from showattend.metrics import caption_statistics, score_captions

pytestmark = pytest.mark.usefixtures("no_java")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data") / "photos"


def run(*arguments: object, launch: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    two = ["-m", "accelerate.commands.launch", f"--config_file={ROOT}/configs/accelerate_two_cpu_processes.yaml"]
    command = [sys.executable, *(two if launch else []), *map(str, arguments)]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=300)


def test_captions_and_figures(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    figures = evaluate_checkpoint(str(checkpoint), str(images), out, num_beams=2, max_length=9)
    results = json.loads((out / "captions.json").read_text())
    captions = {result["image_id"]: result["caption"] for result in results}
    assert len(captions) == len(results) == figures["images"] == 2  # an eighth of sixteen
    model, processor = load_captioner(checkpoint)
    for name, caption in captions.items():
        inputs = processor(images=images / "Images" / name, return_tensors="pt")
        expected = model.generate(**inputs, num_beams=2, max_length=9)
        assert processor.batch_decode(expected, skip_special_tokens=True) == [caption]
    references: dict[str, list[str]] = {name: [] for name in captions}
    for line in (images / "captions.txt").read_text().splitlines()[1:]:
        name, caption = line.split(",", 1)
        if name in references:
            references[name].append(caption.strip('"'))
    assert figures["metrics"] == pytest.approx(score_captions(captions, references))
    assert figures["statistics"] == caption_statistics(captions, references)
    assert figures["generation"] == {"num_beams": 2, "max_length": 9}
    assert json.loads((out / "figures.json").read_text()) == figures
    assert figures["intervals"].keys() == figures["metrics"].keys()
    for name, (low, high) in figures["intervals"].items():
        assert low <= figures["metrics"][name] <= high


def test_two_processes_measure_what_one_does(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    # Of three images one process gets two and the other one: nothing may be padded into the figures.
    names = [f"{name}.jpg\n" for name in ("red_circle", "blue_line", "white_square")]
    (images / "Flickr_8k.testImages.txt").write_text("".join(names))
    script = ROOT / "scripts" / "evaluate.py"
    shared = [f"--checkpoint={checkpoint}", f"--dataset={images}", "--split=test", "--max_length", "9"]
    written = []
    for processes in (1, 2):
        out = tmp_path / f"out-{processes}"
        done = run(script, *shared, f"--output-dir={out}", launch=processes == 2)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("cider") == 1
        written.append([(out / name).read_text() for name in ("captions.json", "figures.json")])
    assert written[0] == written[1]
    assert json.loads(written[0][1])["images"] == 3


def test_captions_of_something_else(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "Flickr_8k.devImages.txt").write_text("red_circle.jpg\nblue_line.jpg\nwhite_square.jpg\n")
    good = {name: f"a {name.replace('_', ' ')} on a dark background" for name in ("red_circle", "blue_line")}
    good["white_square"] = "a white square"
    results = [{"image_id": name, "caption": caption} for name, caption in good.items()]
    (tmp_path / "good.json").write_text(json.dumps(results))
    rows = [{"path": f"x/{name}.jpg", "caption": text} for name in good for text in ("a dog runs", "unused")]
    (tmp_path / "poor.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    shared = ["--dataset", str(images)]
    assert (
        evaluate.main([*shared, "--captions", str(tmp_path / "poor.jsonl"), "--output-dir", str(tmp_path / "a")]) == 0
    )
    poor = json.loads((tmp_path / "a" / "figures.json").read_text())
    assert (poor["captions"], poor["dataset"], poor["images"]) == ("poor.jsonl", "photos", 3)
    assert (
        json.loads((tmp_path / "a" / "captions.json").read_text())[0]["caption"] == "a dog runs"
    )  # the first, or best
    assert capsys.readouterr().out.startswith("3 images, 95 % bootstrap intervals\nbleu_1")

    written = []
    for number, other in enumerate([tmp_path / "a" / "figures.json", tmp_path / "poor.jsonl"]):
        output = tmp_path / str(number)
        assert not evaluate.main(
            [*shared, "--captions", f"{tmp_path}/good.json", f"--output-dir={output}", f"--compare={other}"]
        )
        assert f"differences to {other}\n" in capsys.readouterr().out
        figures = json.loads((output / "figures.json").read_text())
        assert figures.pop("compared_with") == str(other)
        written.append(figures)
    assert written[0] == written[1]
    figures = written[0]
    assert figures["statistics"]["distinct_captions"] == 3
    for name, difference in figures["differences"].items():
        assert difference["value"] == pytest.approx(figures["metrics"][name] - poor["metrics"][name])
        assert difference["equal"] == (difference["low"] <= 0 <= difference["high"])
    assert not figures["differences"]["bleu_1"]["equal"]


WITHOUT_TORCH = """
import sys
import datasets, transformers.utils  # older versions of these import torch by themselves
before = set(sys.modules)
from showattend.__main__ import main
assert main(sys.argv[1:]) == 0
assert not {"torch", "torchvision", "accelerate"} & (sys.modules.keys() - before)
"""


def test_captions_are_scored_without_torch(images: Path, tmp_path: Path) -> None:
    (images / "Flickr_8k.devImages.txt").write_text("red_circle.jpg\nblue_line.jpg\n")
    (tmp_path / "good.csv").write_text("path,caption\nred_circle.jpg,a red circle\nblue_line.jpg,a blue line\n")
    done = run(
        "-c",
        WITHOUT_TORCH,
        "evaluate",
        f"--captions={tmp_path}/good.csv",
        f"--dataset={images}",
        f"--output-dir={tmp_path}/out",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 images, 95 % bootstrap intervals\nbleu_1")


def test_captions_are_kept_if_scoring_fails(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "Flickr_8k.devImages.txt").write_text("red_circle.jpg\n")
    rows = [{"image_id": "red_circle.jpg", "caption": "a red circle"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([f"--dataset={images}", f"--captions={tmp_path}/a.json", f"--output-dir={tmp_path}/out"])
    assert capsys.readouterr().err.startswith('error: pycocoevalcap is not installed: pip install -e ".[train]"')
    assert json.loads((tmp_path / "out" / "captions.json").read_text()) == rows


def test_captions_that_cannot_be_scored(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "Flickr_8k.devImages.txt").write_text("red_circle.jpg\nblue_line.jpg\n")
    captions = tmp_path / "few.json"
    captions.write_text('[{"image_id": "red_circle", "caption": "a dog"}]')
    arguments = ["--dataset", str(images), "--captions", str(captions), "--output-dir", str(tmp_path / "out")]

    def error(*more: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            evaluate.main([*arguments, *more])
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "few.json lacks a caption for 1 of 2 images, 'blue_line.jpg' first" in error()
    assert "--num-beams is for a checkpoint, and --captions takes none" in error("--num-beams", "3")
    assert "not allowed with argument" in error("--checkpoint", "somewhere")
    captions.write_text('[{"image_id": "red_circle", "caption": "a dog"}, {"image_id": "blue_line", "caption": "a"}]')
    assert "captions.json: No such file or directory" in error("--compare", str(tmp_path / "figures.json"))
    assert "has no test split" in error("--split", "test")
    arguments = ["--dataset", str(images), "--output-dir", str(tmp_path / "out"), "--checkpoint", "c"]
    for settings in ("x", "[1]", "[" * 100_000):
        assert "is not a JSON object such as '{\"no_repeat_ngram_size\": 3}'" in error("--generation", settings)
    assert "--generation cannot hold split: --split is an option" in error("--generation", '{"split": "train"}')
    twice = error("--generation", '{"num_beams": 2}', "--num-beams=3")
    assert "--generation cannot hold num_beams: --num-beams is an option" in twice


def test_errors_of_the_evaluation(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"has no test split: it has .*validation"):
        (images / "Flickr_8k.devImages.txt").write_text("red_circle.jpg\n")
        evaluate_checkpoint(str(checkpoint), str(images), tmp_path / "out", split="test")
    with pytest.raises(OSError, match=r"There is no checkpoint folder .*nowhere"):
        evaluate_checkpoint(str(tmp_path / "nowhere"), str(images), tmp_path / "out")
    with pytest.raises(OSError, match=r"holds no captioner that can be loaded"):
        evaluate_checkpoint(str(images), str(images), tmp_path / "out")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"num_return_sequences": 2, "num_beams": 2}, "One caption per image is scored"),
        ({"num_beams": "three"}, "`num_beams` must be at least 1, not 'three'"),
        ({"max_new_tokens": "x"}, "A setting of generate has the wrong type"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            evaluate_checkpoint(str(checkpoint), str(images), tmp_path / "out", **settings)
    monkeypatch.setattr("showattend.evaluation.evaluate.caption_images", None)  # before an hour of captioning
    with pytest.raises(FileNotFoundError, match=r"nope\.json"):
        evaluate_checkpoint(str(checkpoint), str(images), tmp_path / "out", compare="nope.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"`output_dir` .*cannot be written"):
        evaluate_checkpoint(str(checkpoint), str(images), tmp_path / "file")
