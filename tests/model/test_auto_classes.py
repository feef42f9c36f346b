"""A saved folder works by itself, in a fresh process without this package.

Starting a process takes most of the time here, so each does all its work at once and prints what it saw as JSON.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import backbone_config
from PIL import Image

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor

Model = ShowAttendForConditionalGeneration
Json = dict[str, Any]

FILES = {
    "config.json",
    "configuration_showattend.py",
    "deferred_linear_showattend.py",
    "generation_config.json",
    "image_processing_showattend.py",
    "model.safetensors",
    "modeling_showattend.py",
    "pipeline_showattend.py",
    "processing_showattend.py",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}

PRELUDE = """
import json, os, sys
from importlib.abc import MetaPathFinder

class Hidden(MetaPathFinder):  # also where the package is installed
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_showattend":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
try:
    import modeling_showattend
except ModuleNotFoundError:
    pass
else:
    sys.exit("the package can be imported")

import torch
from PIL import Image
import transformers
from transformers import pipeline

def caption(model, processor):
    inputs = processor(images=[Image.open(path) for path in paths], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs, decoder_input_ids=torch.full((len(paths), 1), 2)).logits
    return {
        "greedy": model.generate(**inputs, max_length=12).tolist(),
        "beams": model.generate(**inputs, num_beams=3, max_length=12).tolist(),
        "prefix": model.generate(**processor(images=paths, text="a dog", return_tensors="pt"), max_length=9).tolist(),
        "logits": logits.flatten().tolist(),
    }

folder, paths = sys.argv[1], sys.argv[2].split(os.pathsep)
options = {"trust_remote_code": True}
seen = {}
"""

AUTO_CLASSES = """
try:
    transformers.AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    seen["without_trust"] = str(error)
config = transformers.AutoConfig.from_pretrained(folder, **options)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
image_processor = transformers.AutoImageProcessor.from_pretrained(folder, **options)
processor = transformers.AutoProcessor.from_pretrained(folder, **options)
model = transformers.AutoModelForImageTextToText.from_pretrained(folder, **options)
seen["classes"] = [type(x).__name__ for x in (config, tokenizer, image_processor, processor, model)]
seen["modules"] = [type(x).__module__.split(".")[0] for x in (config, image_processor, processor, model)]
seen["training"] = model.training
seen["trained"] = sorted({name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad})
seen["tokens"] = tokenizer("a dog runs").input_ids
seen["pixels"] = image_processor(paths, return_tensors="pt").pixel_values.flatten()[:50].tolist()
seen["captions"] = caption(model, processor)
other = transformers.AutoModel.from_pretrained(folder, **options)
seen["auto_model_captions"] = caption(other, processor)
"""

PIPELINES = """
captioner = pipeline(model=folder, **options)
seen["pipeline"] = [type(captioner).__name__, captioner.task]
seen["image"] = captioner(Image.open(paths[0]), max_length=12)
seen["path"] = captioner(paths[0], max_length=12)
seen["list"] = captioner(paths, max_length=12)
seen["batches"] = captioner(paths, batch_size=2, max_length=12)
seen["many"] = captioner(paths, batch_size=2, prefix="a dog", num_beams=3, num_return_sequences=2, max_length=9)
seen["nested_arguments"] = captioner(paths[0], generate_kwargs={"num_beams": 3, "max_length": 12})
named = pipeline("image-to-text", model=folder, num_beams=3, max_length=12, **options)
seen["named"] = named(paths)
text_to_text = pipeline("image-text-to-text", model=folder, **options)
seen["text_to_text"] = text_to_text(images=paths[0], text="", generate_kwargs={"max_length": 12})
seen["text_to_text_prefix"] = text_to_text(images=paths[0], text="a dog", generate_kwargs={"max_length": 9})
try:
    captioner(paths[0], num_beems=3)
except ValueError as error:
    seen["typo"] = str(error)
"""

# Any attempt to reach the network fails, whatever the settings of the libraries.
ENCODERS = """
import socket

def refuse(*_):
    raise AssertionError("something wants the network")

socket.socket.connect = socket.getaddrinfo = refuse
for kind in sorted(os.listdir(folder)):
    path = os.path.join(folder, kind)
    processor = transformers.AutoProcessor.from_pretrained(path, **options)
    model = transformers.AutoModelForImageTextToText.from_pretrained(path, **options)
    seen[kind] = caption(model, processor)
"""

SAVE_AGAIN = """
model.save_pretrained(sys.argv[3])
processor.save_pretrained(sys.argv[3])
captioner.save_pretrained(sys.argv[4])
"""


def run(script: str, *arguments: Path | str, cwd: Path, **environment: str) -> Json:
    """In a new process: isolated (-I), with a cache of its own, away from this repository."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    kept |= {"HF_HOME": str(cwd / "hf"), "HF_MODULES_CACHE": str(cwd / "modules"), "HF_HUB_OFFLINE": "1"} | environment
    process = subprocess.run(
        [sys.executable, "-I", "-c", PRELUDE + script + "\nprint(json.dumps(seen))", *map(str, arguments)],
        cwd=cwd,
        env=kept,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    seen = json.loads(process.stdout.splitlines()[-1])
    seen["stderr"] = process.stderr
    return seen


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        noise = np.random.default_rng(number).integers(0, 256, (3 + 3 * number, 5, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((80, 60)).save(path)
    return paths


@pytest.fixture
def folder(
    make_model: Callable[..., Model], processor: ShowAttendProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("saved") / "showattend-tiny"
    make_model(seed=1, context_gate=True, deep_output=True).save_pretrained(path)
    processor.save_pretrained(path)
    return path


def in_process(folder: Path, images: list[Path]) -> Json:
    """What a fresh process should see, from the classes of this one."""
    model, processor = Model.from_pretrained(folder), ShowAttendProcessor.from_pretrained(folder)
    inputs = processor(images=images, return_tensors="pt")
    prefixed = processor(images=images, text="a dog", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs, decoder_input_ids=torch.full((3, 1), 2)).logits
    captions = {
        "greedy": model.generate(**inputs, max_length=12).tolist(),
        "beams": model.generate(**inputs, num_beams=3, max_length=12).tolist(),
        "prefix": model.generate(**prefixed, max_length=9).tolist(),
        "logits": logits.flatten().tolist(),
    }
    assert len({tuple(ids) for ids in captions["greedy"]}) > 1
    assert captions["greedy"] != captions["beams"]

    def texts(**options: Any) -> list[str]:
        return processor.batch_decode(model.generate(**options), skip_special_tokens=True)

    return {
        "captions": captions,
        "tokens": processor.tokenizer("a dog runs").input_ids,
        "pixels": inputs["pixel_values"].flatten()[:50].tolist(),
        "greedy": texts(**inputs, max_length=12),
        "beams": texts(**inputs, num_beams=3, max_length=12),
        "prefix": texts(**prefixed, max_length=9),
        "many": texts(**prefixed, num_beams=3, num_return_sequences=2, max_length=9),
    }


def test_other_encoders_without_network(
    make_model: Callable[..., Model], processor: ShowAttendProcessor, images: list[Path], tmp_path: Path
) -> None:
    kinds = ["convnext", "clip_vision_model", *(["timm_backbone"] if find_spec("timm") else [])]
    expected = {}
    for kind in kinds:
        path = tmp_path / "saved" / kind
        make_model(seed=1, encoder_name=None, backbone_config=backbone_config(kind)).save_pretrained(path)
        processor.save_pretrained(path)
        model = Model.from_pretrained(path)
        with torch.no_grad():
            inputs = processor(images=images, return_tensors="pt")
            logits = model(**inputs, decoder_input_ids=torch.full((3, 1), 2)).logits
        expected[kind] = logits.flatten().tolist(), model.generate(**inputs, max_length=12).tolist()
    seen = run(ENCODERS, tmp_path / "saved", os.pathsep.join(map(str, images)), cwd=tmp_path, HF_HUB_OFFLINE="0")
    for kind in kinds:
        assert seen[kind]["logits"] == pytest.approx(expected[kind][0], rel=1e-4, abs=1e-5)
        assert seen[kind]["greedy"] == expected[kind][1]


def same_captions(seen: Json, expected: Json) -> None:
    assert {name: seen[name] for name in ("greedy", "beams", "prefix")} == {
        name: expected[name] for name in ("greedy", "beams", "prefix")
    }
    assert seen["logits"] == pytest.approx(expected["logits"], rel=1e-4, abs=1e-5)


def as_output(texts: list[str]) -> list[list[dict[str, str]]]:
    return [[{"generated_text": text}] for text in texts]


def test_saved_folder_is_complete(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["ShowAttendForConditionalGeneration"]
    assert config["custom_pipelines"]["image-to-text"]["impl"] == "pipeline_showattend.ImageCaptioningPipeline"


def test_fresh_processes(folder: Path, images: list[Path], tmp_path: Path) -> None:
    """Load, save, load, save, load: each time the same captions, in a process that knows only the folder."""
    expected = in_process(folder, images)
    names = os.pathsep.join(map(str, images))
    again, from_pipeline = tmp_path / "again", tmp_path / "from pipeline"
    (tmp_path / "first").mkdir()
    seen = run(AUTO_CLASSES + PIPELINES + SAVE_AGAIN, folder, names, again, from_pipeline, cwd=tmp_path / "first")
    check(seen, expected)
    for saved in (again, from_pipeline):
        assert {path.name for path in saved.iterdir()} == FILES
        assert (saved / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        for name in FILES:
            if name.endswith(".py"):
                assert (saved / name).read_text() == (folder / name).read_text()

    # The second generation is shared through the Hub: the same files, found under a name and not in a folder.
    (tmp_path / "second" / "hf").mkdir(parents=True)
    shutil.rmtree(tmp_path / "first")
    snapshot = tmp_path / "second" / "hf" / "hub" / "models--someone--tiny" / "snapshots" / ("0" * 40)
    shutil.copytree(again, snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    third = tmp_path / "third"
    seen = run(
        AUTO_CLASSES + PIPELINES + SAVE_AGAIN, "someone/tiny", names, third, tmp_path / "4", cwd=tmp_path / "second"
    )
    check(seen, expected)
    assert {path.name for path in third.iterdir()} == FILES

    # The third must not need the first two, nor the Hub.
    shutil.rmtree(again)
    shutil.rmtree(tmp_path / "second")
    (tmp_path / "last").mkdir()
    check(run(AUTO_CLASSES + PIPELINES, third, names, cwd=tmp_path / "last"), expected)


def check(seen: Json, expected: Json) -> None:
    assert seen["classes"] == [
        "ShowAttendConfig",
        "BertTokenizer",
        "ShowAttendImageProcessor",
        "ShowAttendProcessor",
        "ShowAttendForConditionalGeneration",
    ]
    assert set(seen["modules"]) == {"transformers_modules"}
    assert "trust_remote_code=True" in seen["without_trust"]
    assert seen["training"] is False
    assert seen["trained"] == ["decoder"]
    assert seen["tokens"] == expected["tokens"]
    assert seen["pixels"] == pytest.approx(expected["pixels"])
    same_captions(seen["captions"], expected["captions"])
    same_captions(seen["auto_model_captions"], expected["captions"])

    assert seen["pipeline"] == ["ImageCaptioningPipeline", "image-to-text"]
    assert seen["image"] == seen["path"] == as_output(expected["greedy"])[0]
    assert seen["list"] == seen["batches"] == as_output(expected["greedy"])
    assert seen["nested_arguments"] == as_output(expected["beams"])[0]
    assert seen["named"] == as_output(expected["beams"])
    many = [{"generated_text": text} for text in expected["many"]]
    assert seen["many"] == [many[0:2], many[2:4], many[4:6]]
    assert seen["text_to_text"] == [{"input_text": "", "generated_text": expected["greedy"][0]}]
    assert seen["text_to_text_prefix"] == [{"input_text": "a dog", "generated_text": expected["prefix"][0]}]
    assert "num_beems" in seen["typo"]
    assert "Warning" not in seen["stderr"]
    assert "past_key_values" not in seen["stderr"]  # which transformers 5.24 warns of


def test_pipeline_of_this_process(folder: Path, images: list[Path]) -> None:
    """The same classes without remote code: a dataset column, a generator, an array and an open file go in as well."""
    from modeling_showattend.pipeline_showattend import ImageCaptioningPipeline

    model, processor = Model.from_pretrained(folder), ShowAttendProcessor.from_pretrained(folder)
    captioner = ImageCaptioningPipeline(model=model, processor=processor, task="image-to-text")
    expected = as_output(in_process(folder, images)["greedy"])

    def opened() -> Iterator[Image.Image]:
        for path in images:
            with Image.open(path) as image:
                yield image.copy()

    assert list(captioner(opened(), max_length=12)) == expected
    assert captioner([np.asarray(image) for image in opened()], max_length=12) == expected
    with images[1].open("rb") as file:
        assert captioner(file, max_length=12) == expected[1]
    with pytest.raises(OSError, match=r"nowhere\.png"):
        captioner("nowhere.png")
    assert captioner(images[0].as_posix(), prefix="", max_length=12) == expected[0]
