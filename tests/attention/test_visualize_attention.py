"""The figures of the attention, and the command that draws them."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageChops

from modeling_showattend import ShowAttendProcessor
from showattend.attention.figures import AMBER, draw_attention, lights, lit
from showattend.attention.maps import AttendedCaption
from showattend.commands.visualize_attention import main

CAPTION = "a man's black & white t-shirt is drying over the grass while nobody is looking at it"


def attended_of(caption: str, width: int, height: int) -> AttendedCaption:
    """Attention that wanders over a 7 x 7 grid, word by word."""
    words = caption.split()
    grids = np.full((len(words), 49), 0.01, dtype=np.float32)
    grids[range(len(words)), range(len(words))] = 0.52
    return AttendedCaption(caption, words, grids.reshape(-1, 7, 7), (0, 0, width, height), (width, height))


def svg_panels(path: Path) -> list[tuple[int, int, int, int]]:
    """x, y, width and height of a figure's pictures."""
    found = re.findall(
        r'<image x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)" href="data:image/jpeg', path.read_text()
    )
    return [(int(x), int(y), int(width), int(height)) for x, y, width, height in found]


# --- the figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("caption", [CAPTION, "dog", ""])
@pytest.mark.parametrize("size", [(64, 48), (30, 300), (900, 90), (1, 1)])
def test_a_panel_or_frame_a_word(caption: str, size: tuple[int, int], tmp_path: Path) -> None:
    image, attended = Image.new("RGB", size, (90, 120, 150)), attended_of(caption, *size)
    for suffix in ("png", "svg", "gif"):
        draw_attention(image, attended, tmp_path / f"figure.{suffix}")
        assert (tmp_path / f"figure.{suffix}").stat().st_size < 700_000

    svg = (tmp_path / "figure.svg").read_text()
    ElementTree.fromstring(svg)  # well-formed
    assert [unescape(word) for word in re.findall("<text[^>]*>([^<]*)</text>", svg)] == attended.words
    panels = svg_panels(tmp_path / "figure.svg")
    assert len(panels) == len(attended.words) + 1

    sheet = Image.open(tmp_path / "figure.png").convert("RGB")
    assert re.search(r'width="(\d+)" height="(\d+)"', svg).groups() == tuple(map(str, sheet.size))  # type: ignore[union-attr]
    outside = sheet.copy()
    for number, (x, y, width, height) in enumerate(panels):
        panel = np.asarray(sheet.crop((x, y, x + width, y + height)), dtype=int)
        assert abs(panel - (90, 120, 150)).max() < 12 if number == 0 else panel.max() < 250
        assert abs(width / height - size[0] / size[1]) < 0.1 * size[0] / size[1]
        outside.paste("white", (x - 1, y - 1, x + width + 1, y + height + 1))
    # The rest is text, black on white.
    left = np.asarray(outside, dtype=int)
    assert np.ptp(left, axis=2).max() < 30
    assert (left.min() < 100) == bool(caption)

    animation: Any = Image.open(tmp_path / "figure.gif")
    assert animation.n_frames == len(attended.words) + 1
    if caption:
        assert animation.info["loop"] == 0


def test_the_current_word_is_marked(tmp_path: Path) -> None:
    draw_attention(Image.new("RGB", (300, 200), "gray"), attended_of("a dog runs", 300, 200), tmp_path / "figure.gif")
    animation: Any = Image.open(tmp_path / "figure.gif")
    marks = []
    for number in range(animation.n_frames):
        animation.seek(number)
        assert animation.info["duration"] == (700 if 0 < number < animation.n_frames - 1 else 1500)
        caption = animation.convert("RGB").crop((0, animation.height - 46, animation.width, animation.height))
        marked = abs(np.asarray(caption, dtype=int) - AMBER).max(axis=2) < 20
        marks.append(np.flatnonzero(marked.any(axis=0)))
    assert marks[0].size == 0
    assert marks[1].max() < marks[2].mean() < marks[2].max() < marks[3].mean()  # from left to right
    assert np.ptp(marks[1]) < np.ptp(marks[2])  # "dog" is longer than "a"


def test_the_light_is_where_the_attention_is() -> None:
    attended = attended_of("a dog runs", 70, 140)  # the third word looks at the third cell of the first row
    light = lights(attended, 70, 140)[2]
    assert light.shape == (140, 70) and light.dtype == np.float32
    assert np.unravel_index(light.argmax(), light.shape)[0] < 20 and light.sum(axis=0).argmax() in (24, 25)
    assert light.max() == pytest.approx(1) and light[:, 50:].max() == light[60:].max() == 0
    picture = np.asarray(lit(Image.new("RGB", (70, 140), (100, 100, 100)), light), dtype=int)
    assert (picture[60:] == 35).all()
    red, _, blue = picture[5, 25]
    assert red > 150 and red > blue + 50


def test_words_that_looked_everywhere_alike_get_less_light() -> None:
    grids = np.full((3, 2, 2), 0.25, dtype=np.float32)
    grids[1, 0, 0] += 0.05
    grids[2, 0, 0] += 0.5
    attended = AttendedCaption(
        "a b c", ["a", "b", "c"], grids / grids.sum(axis=(1, 2), keepdims=True), (0, 0, 8, 8), (8, 8)
    )
    assert lights(attended, 8, 8).max(axis=(1, 2)) == pytest.approx([0, 0.05 / 0.2625, 1])


def test_what_a_crop_leaves_out_is_dark_and_its_border_changes_no_light() -> None:
    cropped = replace(attended_of("a dog", 40, 20), box=(10.4, 0, 30.8, 20))
    light = lights(cropped, 40, 20)
    assert not light[..., :10].any() and not light[..., 31:].any()
    assert light[0, :, 11].max() > 0.9 and light[0, :, 10].max() == pytest.approx(0.6 * light[0, :, 11].max(), rel=0.1)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(
    make_model: Callable[..., Any], processor: ShowAttendProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working folder, with a captioner in `captioner/` and an image."""
    make_model(seed=1).save_pretrained(tmp_path / "captioner")
    processor.save_pretrained(tmp_path / "captioner")
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "my photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> None:
    assert main(arguments) == 0


def test_the_command_draws_and_prints_the_caption(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # a training extra, which captioning does without
    run("my photo.png", "--checkpoint", "captioner")
    output, caption = capsys.readouterr().out.rstrip("\n").split("\t")
    assert output == "my photo-attention.png" and caption
    Image.open(folder / output).verify()

    run("my photo.png", "--checkpoint", "captioner", "--num-beams", "3", "--output", "figure.SVG")
    output, caption = capsys.readouterr().out.rstrip("\n").split("\t")
    assert output == "figure.SVG" and f"<title>{caption}</title>" in (folder / output).read_text()
    assert len(svg_panels(folder / output)) == len(caption.split()) + 1

    other = folder / "other.jpg"
    Image.open(folder / "my photo.png").transpose(Image.Transpose.ROTATE_180).save(other)
    run("other.jpg", "--checkpoint", "captioner", "--num-beams", "3", "--output", "other.svg")
    first, second = (Image.open(folder / name).convert("RGB") for name in ("my photo.png", "other.jpg"))
    assert ImageChops.difference(first, second).getbbox() is not None
    assert (folder / "figure.SVG").read_text() != (folder / "other.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jpg"], "no such image file: missing.jpg"),
        (["captioner/config.json"], "cannot read captioner/config.json"),
        (["my photo.png", "--output", "figure.bmp"], "--output figure.bmp must end in .png, .svg or .gif"),
        (["my photo.png", "--output", "figure"], "--output figure must end in .png, .svg or .gif"),
        (["my photo.png", "--output", "missing/figure.png"], "missing is not a folder that can be written to"),
        (["my photo.png", "--output", "folder.png"], "folder.png cannot be written"),
        (["my photo.png", "--num-beams", "0"], "--num-beams: '0' is not a whole number from 1"),
        (["my photo.png", "--checkpoint", "./missing/captioner"], "There is no checkpoint folder"),
        (["my photo.png", "--checkpoint", "empty"], "empty holds no captioner"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments: list[str], message: str, folder: Path, capsys: Any) -> None:
    for name in ("folder.png", "empty"):
        (folder / name).mkdir()
    before = sorted(folder.rglob("*"))
    checkpoint = [] if "--checkpoint" in arguments else ["--checkpoint", "captioner"]
    with pytest.raises(SystemExit) as stop:
        run(*arguments, *checkpoint)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and message in captured.err
    assert captured.err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
