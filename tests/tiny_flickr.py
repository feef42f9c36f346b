"""A dataset small enough to train on in a test: sixteen drawings with five captions each, and helpers."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torchvision
from accelerate.state import AcceleratorState, GradientState
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from modeling_showattend import ShowAttendImageProcessor
from showattend.__main__ import main
from showattend.training.settings import TrainingSettings

ROOT = Path(__file__).parent.parent
COLOURS = ("red", "green", "blue", "white")
SHAPES = ("circle", "square", "triangle", "line")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def draw(colour: str, shape: str) -> bytes:
    """A JPEG of 64x64 pixels, no image like its mirror image."""
    image = Image.new("RGB", (64, 64), "black")
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse((4, 12, 40, 48), fill=colour)
    elif shape == "square":
        pen.rectangle((20, 8, 58, 46), fill=colour)
    elif shape == "triangle":
        pen.polygon(((4, 60), (4, 4), (60, 60)), fill=colour)
    else:
        pen.line((4, 4, 60, 50), fill=colour, width=9)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def captions_of(colour: str, shape: str) -> list[str]:
    return [
        f"A {colour} {shape} .",
        f"There is a {colour} {shape} on a dark background .",
        f"One big {colour} {shape} .",
        f"The photo of a {shape} , drawn {colour} , with nothing else around it .",
        f"A {shape} is drawn .",
    ]


def make_folder(folder: Path) -> Path:
    """`photos/` in Kaggle's layout, `vocab.txt` with all its words, `resnet18.safetensors` with random weights."""
    images = folder / "photos"
    (images / "Images").mkdir(parents=True)
    lines = ["image,caption"]
    words = {"unused"}
    for colour in COLOURS:
        for shape in SHAPES:
            (images / "Images" / f"{colour}_{shape}.jpg").write_bytes(draw(colour, shape))
            words.update(" ".join(captions_of(colour, shape)).lower().split())
            lines += [f'{colour}_{shape}.jpg,"{caption}"' for caption in captions_of(colour, shape)]
    (images / "captions.txt").write_text("\n".join(lines) + "\n")
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *sorted(words)]) + "\n")
    save_file(encoder_weights(), folder / "resnet18.safetensors")
    return folder


def encoder_weights() -> dict[str, torch.Tensor]:
    """Of a ResNet-18, random, with the images' statistics in its BatchNorms: else all features would be huge."""
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(weights=None).train()
    for module in resnet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    images: Any = [draw(colour, shape) for colour in COLOURS for shape in SHAPES]
    with torch.no_grad():
        resnet(ShowAttendImageProcessor()(images, return_tensors="pt")["pixel_values"])
    return dict(resnet.state_dict())


def settings(folder: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Settings that make a run take seconds."""
    encoder = {"encoder_name": "resnet18", "encoder_weights": str(folder / "resnet18.safetensors")}
    return {
        "dataset": str(folder / "photos"),
        "output_dir": str(output),
        "cache_dir": str(folder / "cache"),
        "tokenizer": str(folder / "vocab.txt"),
        **({} if "init_from" in changes else encoder),
        "embed_size": 16,
        "attention_dim": 16,
        "decoder_dim": 32,
        "max_length": 16,
        "batch_size": 8,
        "epochs": 1,
        "checkpoint_every": 10_000,
        "report_to": "none",
        **changes,
    }


def training_settings(folder: Path, output: Path, **changes: Any) -> TrainingSettings:
    return TrainingSettings(**settings(folder, output, **changes))


def command_line(folder: Path, output: Path, **changes: Any) -> list[str]:
    """The same as arguments of scripts/train.py; a setting that is None is left to the preset."""
    given = settings(folder, output, **changes)
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]


def read_log(output: Path) -> list[dict[str, float]]:
    """A line of figures per epoch of a run."""
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def forget_process() -> None:
    """Let the next run in this process choose its own devices and precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run_command(*arguments: object) -> int:
    """The exit code of a subcommand, run in this process."""
    try:
        return main(list(map(str, arguments)))
    except SystemExit as stop:
        return int(stop.code or 0)


def environment(**changes: str) -> dict[str, str]:
    """Of a process that trains: one thread, and no Java, which takes ten seconds an epoch for METEOR alone."""
    plain = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": str(Path(sys.executable).parent)}
    return {**os.environ, **plain, **changes}
