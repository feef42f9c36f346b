import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_flickr import ROOT, environment, make_folder

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from modeling_showattend.metrics import caption_statistics, score_captions
from showattend.checkpoints import load_captioner
from showattend.evaluation.evaluate import evaluate_checkpoint

MakeModel = Callable[..., ShowAttendForConditionalGeneration]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data") / "photos"


@pytest.fixture
def checkpoint(tmp_path: Path, make_model: MakeModel, processor: ShowAttendProcessor) -> Path:
    folder = tmp_path / "checkpoint"
    make_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def run(*arguments: object, launch: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    two = ["-m", "accelerate.commands.launch", f"--config_file={ROOT}/configs/accelerate_two_cpu_processes.yaml"]
    command = [sys.executable, *(two if launch else []), *map(str, arguments)]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=300)


def test_captions_and_figures(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    figures = evaluate_checkpoint(str(checkpoint), str(photos), out, num_beams=2, max_length=9)
    results = json.loads((out / "captions.json").read_text())
    captions = {result["image_id"]: result["caption"] for result in results}
    assert len(captions) == len(results) == figures["images"] == 2  # an eighth of sixteen
    model, processor = load_captioner(checkpoint)
    for name, caption in captions.items():
        inputs = processor(images=photos / "Images" / name, return_tensors="pt")
        expected = model.generate(**inputs, num_beams=2, max_length=9)
        assert processor.batch_decode(expected, skip_special_tokens=True) == [caption]
    references: dict[str, list[str]] = {name: [] for name in captions}
    for line in (photos / "captions.txt").read_text().splitlines()[1:]:
        name, caption = line.split(",", 1)
        if name in references:
            references[name].append(caption.strip('"'))
    assert figures["metrics"] == pytest.approx(score_captions(captions, references))
    assert figures["statistics"] == caption_statistics(captions)
    assert figures["generation"] == {"num_beams": 2, "max_length": 9}
    assert json.loads((out / "figures.json").read_text()) == figures


def test_two_processes_measure_what_one_does(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    # Of three photos one process gets two and the other one: nothing may be padded into the figures.
    names = [f"{name}.jpg\n" for name in ("red_circle", "blue_line", "white_square")]
    (photos / "Flickr_8k.testImages.txt").write_text("".join(names))
    script = ROOT / "scripts" / "evaluate.py"
    shared = [f"--checkpoint={checkpoint}", f"--dataset={photos}", "--split=test", "--max_length", "9"]
    written = []
    for processes in (1, 2):
        out = tmp_path / f"out-{processes}"
        done = run(script, *shared, f"--output-dir={out}", launch=processes == 2)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("cider") == 1
        written.append([(out / name).read_text() for name in ("captions.json", "figures.json")])
    assert written[0] == written[1]
    assert json.loads(written[0][1])["images"] == 3


def test_errors_of_the_evaluation(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no test split: it has .*validation"):
        (photos / "Flickr_8k.devImages.txt").write_text("red_circle.jpg\n")
        evaluate_checkpoint(str(checkpoint), str(photos), tmp_path / "out", split="test")
    with pytest.raises(OSError, match=r"There is no checkpoint folder .*nowhere"):
        evaluate_checkpoint(str(tmp_path / "nowhere"), str(photos), tmp_path / "out")
    with pytest.raises(OSError, match=r"holds no captioner that can be loaded"):
        evaluate_checkpoint(str(photos), str(photos), tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"output_dir .*cannot be written"):
        evaluate_checkpoint(str(checkpoint), str(photos), tmp_path / "file")
