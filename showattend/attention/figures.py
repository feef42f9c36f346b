"""Figures of where the captioner looked: a sheet of lit photos, one a word, or an animation. Pillow draws them all."""

import base64
import io
from dataclasses import replace
from functools import cache
from html import escape
from math import ceil, log, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .maps import AttendedCaption

FORMATS = (".png", ".svg", ".gif")
AMBER = (255, 176, 32)
FONT_SIZE = 18  # pixels, as all lengths here
LINE = 26
GAP = 10


def draw_attention(photo: Image.Image, attended: AttendedCaption, path: str | Path) -> None:
    """Draw where the network looked before every word of a caption.

    A PNG or SVG shows the photo, then for every word the photo lit where the network looked, as figure 3 of the paper
    (Xu et al., 2015) does. A GIF shows the same as frames, with the caption below and the current word marked. The
    light is scaled for each word alone, as [`lights`] says, so two words' brightness cannot be compared.

    Args:
        photo: Upright, as [`load_image`] gives it.
        attended: What [`attend`] says of it.
        path: Of the file to write; its ending is one of `FORMATS`.

    Raises:
        ValueError: If the ending is another one.
        OSError: If the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path} must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
    figure = {".png": _png, ".svg": _svg, ".gif": _gif}[suffix](photo, attended)
    try:
        path.write_bytes(figure)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}.") from error


def lights(attended: AttendedCaption, width: int, height: int) -> np.ndarray:
    """How bright each word's light is on each pixel of the photo resized to `width` x `height`.

    A word's light is the attention beyond what it gave to every cell of the grid, from 0 where it looked least to 1
    where it looked most. A word that looked everywhere nearly alike, its most and least less than the mean apart, gets
    less light.

    Returns:
        float32 (words, height, width), from 0 to 1.
    """
    beyond = attended.grids - attended.grids.min(axis=(1, 2), keepdims=True)
    maps = replace(attended, grids=beyond).resized_maps(width, height)
    peaks = maps.max(axis=(1, 2), keepdims=True)
    strengths = (beyond / attended.grids.mean(axis=(1, 2), keepdims=True)).max(axis=(1, 2), keepdims=True).clip(max=1)
    return maps * strengths / np.maximum(peaks, np.finfo(np.float32).tiny)


def lit(photo: Image.Image, light: np.ndarray) -> Image.Image:
    """The photo, dim and grey where there is no light, warm and in its own colours where there is.

    Args:
        photo: Of any mode.
        light: (height, width), as [`lights`] gives it for a word.
    """
    share = light[..., None]
    grey = np.asarray(photo.convert("L"), dtype=np.float32)[..., None]
    warm = 0.8 * np.asarray(photo.convert("RGB"), dtype=np.float32) + 0.35 * np.array(AMBER, dtype=np.float32)
    return Image.fromarray(((1 - share) * 0.35 * grey + share * warm.clip(0, 255)).round().astype(np.uint8))


class _Panel(NamedTuple):
    word: str
    picture: Image.Image
    x: int  # of the picture's upper left corner; the word stands above its middle
    y: int


def _sheet(photo: Image.Image, attended: AttendedCaption) -> tuple[int, int, list[_Panel]]:
    """The width and height of the sheet, and its panels."""
    pictures = _pictures(photo, attended, total=600_000, each=220**2, longest=480)
    words = ["", *attended.words]
    photo_width, photo_height = pictures[0].size
    width = max(photo_width, *(ceil(_font().getlength(word)) for word in words)) + GAP
    height = photo_height + 2 * FONT_SIZE
    columns = min(range(1, len(words) + 1), key=lambda n: abs(log(n * width / (ceil(len(words) / n) * height) / 1.5)))
    rows = ceil(len(words) / columns)
    columns = ceil(len(words) / rows)  # the last row as full as can be
    panels = [
        _Panel(word, picture, GAP + column * width + (width - GAP - photo_width) // 2, row * height + 2 * FONT_SIZE)
        for (row, column), word, picture in zip(np.ndindex(rows, columns), words, pictures, strict=False)
    ]
    return columns * width + GAP, rows * height + GAP, panels


def _png(photo: Image.Image, attended: AttendedCaption) -> bytes:
    width, height, panels = _sheet(photo, attended)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for word, picture, x, y in panels:
        sheet.paste(picture, (x, y))
        draw.text((x + picture.width / 2, y - FONT_SIZE * 0.8), word, "black", _font(), anchor="mm")
    file = io.BytesIO()
    _dithered(sheet).save(file, "PNG", optimize=True)
    return file.getvalue()


def _svg(photo: Image.Image, attended: AttendedCaption) -> bytes:
    width, height, panels = _sheet(photo, attended)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
        f'     font-family="sans-serif" font-size="{FONT_SIZE}" text-anchor="middle">',
        f'<title>{escape(attended.caption)}</title>\n<rect width="100%" height="100%" fill="white"/>',
    ]
    for word, picture, x, y in panels:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        data = base64.b64encode(file.getvalue()).decode()
        size = f'width="{picture.width}" height="{picture.height}"'
        lines.append(f'<image x="{x}" y="{y}" {size} href="data:image/jpeg;base64,{data}"/>')
        if word:
            lines.append(f'<text x="{x + picture.width / 2}" y="{y - FONT_SIZE * 0.5}">{escape(word)}</text>')
    return "\n".join([*lines, "</svg>\n"]).encode()


def _gif(photo: Image.Image, attended: AttendedCaption) -> bytes:
    pictures = _pictures(photo, attended, total=800_000, each=280**2, longest=560)
    photo_width, photo_height = pictures[0].size
    width = max(photo_width, 240, *(ceil(_font().getlength(word)) + 2 * GAP for word in ["", *attended.words]))
    places = _places(attended.words, width - 2 * GAP)
    caption_height = ceil(places[-1][2] + LINE / 2) if places else LINE
    frames = []
    for number, picture in enumerate(pictures, start=-1):  # -1: the photo alone
        frame = Image.new("RGB", (width, photo_height + GAP + caption_height + GAP), "white")
        frame.paste(picture, ((width - photo_width) // 2, 0))
        draw = ImageDraw.Draw(frame)
        for other, (word, (start, end, middle)) in enumerate(zip(attended.words, places, strict=True)):
            x, y = GAP + start, photo_height + GAP + middle
            if other == number:
                draw.rounded_rectangle((x - 4, y - 0.45 * LINE, GAP + end + 4, y + 0.45 * LINE), 4, fill=AMBER)
            draw.text((x, y), word, "black", _font(), anchor="lm")
        frames.append(_dithered(frame))
    durations = [700] * len(frames)  # milliseconds
    durations[0] = durations[-1] = 1500
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return file.getvalue()


def _places(words: list[str], width: int) -> list[tuple[float, float, float]]:
    """Where the words of a caption stand in centred lines: left end, right end, and the line's middle."""
    space = FONT_SIZE / 2
    lines: list[list[float]] = [[]]  # of the words' lengths
    for word in words:
        length = _font().getlength(word)
        if lines[-1] and sum(lines[-1]) + space * len(lines[-1]) + length > width:
            lines.append([])
        lines[-1].append(length)
    places = []
    for row, line in enumerate(lines):
        x = (width - sum(line) - space * (len(line) - 1)) / 2
        for length in line:
            places.append((x, x + length, (row + 0.5) * LINE))
            x += length + space
    return places


def _pictures(photo: Image.Image, attended: AttendedCaption, total: int, each: int, longest: int) -> list[Image.Image]:
    """The photo and its lit copies, with at most `total` pixels in all, about `each` apiece and `longest` on a side."""
    pixels = min(each, total / (len(attended.words) + 1))
    scale = min(sqrt(pixels / (photo.width * photo.height)), longest / max(photo.size))
    size = max(round(photo.width * scale), 1), max(round(photo.height * scale), 1)
    photo = photo.resize(size, Image.Resampling.LANCZOS)
    return [photo, *(lit(photo, light) for light in lights(attended, *size))]


def _dithered(image: Image.Image) -> Image.Image:
    """In 256 colours, which take a third of the bytes and look the same."""
    palette = image.quantize(256, method=Image.Quantize.FASTOCTREE)
    return image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)
