"""Figures of where the captioner looked: one highlighted image per word, as a sheet or an animation, with Pillow."""

import base64
import io
from dataclasses import replace
from functools import cache
from html import escape
from math import ceil, log, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .maps import AttendedCaption

FORMATS = (".png", ".svg", ".gif")
AMBER = (255, 176, 32)
FONT_SIZE = 18  # all lengths are in pixels
LINE = 26
GAP = 10


def draw_attention(image: Image.Image, attended: AttendedCaption, path: str | Path) -> None:
    """Draw where the network looked before every word of a caption.

    A PNG or SVG shows the image, then one panel per word, bright where the network looked, like figure 3 of the paper
    (Xu et al., 2015). A GIF shows the same as frames, with the caption below and the current word marked. Each word has
    its own brightness scale (see [`lights`]), so the brightness of two words cannot be compared.

    Args:
        image: Upright, as [`load_image`] returns it.
        path: Ends in one of `FORMATS`.
    """
    path = Path(path)
    draw = {".png": _png, ".svg": _svg, ".gif": _gif}.get(path.suffix.lower())
    if draw is None:
        raise ValueError(f"{path} must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
    figure = draw(image, attended)
    try:
        path.write_bytes(figure)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}.") from error


def lights(attended: AttendedCaption, width: int, height: int) -> np.ndarray:
    """The brightness of each word's panel at each pixel of the image resized to `width` x `height`.

    The brightness is the attention minus its minimum over the grid, scaled to 1 at the maximum. If the maximum and the
    minimum of a word differ by less than the mean weight, the whole panel is darker in proportion: a word whose
    attention is spread evenly stays dark.

    Returns:
        float32 (words, height, width), from 0 to 1.
    """
    above_minimum = attended.grids - attended.grids.min(axis=(1, 2), keepdims=True)
    maps = replace(attended, grids=above_minimum).resized_maps(width, height)
    peaks = maps.max(axis=(1, 2), keepdims=True)
    means = attended.grids.mean(axis=(1, 2), keepdims=True)
    strengths = (above_minimum / means).max(axis=(1, 2), keepdims=True).clip(max=1)
    return maps * strengths / np.maximum(peaks, np.finfo(np.float32).tiny)


def lit(image: Image.Image, light: np.ndarray) -> Image.Image:
    """The image, dim and grey where the light (height, width) of a word is 0, in warm colours where it is 1."""
    share = light[..., None]
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    warm = 0.8 * np.asarray(image.convert("RGB"), dtype=np.float32) + 0.35 * np.array(AMBER, dtype=np.float32)
    return Image.fromarray(((1 - share) * 0.35 * grey + share * warm.clip(0, 255)).round().astype(np.uint8))


class _Panel(NamedTuple):
    word: str
    picture: Image.Image
    x: int  # of the picture's upper left corner; the word is centred above the picture
    y: int


def _sheet(image: Image.Image, attended: AttendedCaption) -> tuple[int, int, list[_Panel]]:
    """The width and height of the sheet, and its panels."""
    pictures = _pictures(image, attended, total=600_000, each=220**2, longest=480)
    words = ["", *attended.words]
    image_width, image_height = pictures[0].size
    width = max(image_width, *(ceil(_font().getlength(word)) for word in words)) + GAP
    height = image_height + 2 * FONT_SIZE
    columns = min(range(1, len(words) + 1), key=lambda n: abs(log(n * width / (ceil(len(words) / n) * height) / 1.5)))
    rows = ceil(len(words) / columns)
    columns = ceil(len(words) / rows)  # fill the last row as far as possible
    panels = [
        _Panel(word, picture, GAP + column * width + (width - GAP - image_width) // 2, row * height + 2 * FONT_SIZE)
        for (row, column), word, picture in zip(np.ndindex(rows, columns), words, pictures, strict=False)
    ]
    return columns * width + GAP, rows * height + GAP, panels


def _png(image: Image.Image, attended: AttendedCaption) -> bytes:
    width, height, panels = _sheet(image, attended)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for word, picture, x, y in panels:
        sheet.paste(picture, (x, y))
        draw.text((x + picture.width / 2, y - FONT_SIZE * 0.8), word, "black", _font(), anchor="mm")
    file = io.BytesIO()
    _dithered(sheet).save(file, "PNG", optimize=True)
    return file.getvalue()


def _svg(image: Image.Image, attended: AttendedCaption) -> bytes:
    width, height, panels = _sheet(image, attended)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
        f'     font-family="sans-serif" font-size="{FONT_SIZE}" text-anchor="middle">',
        f'<title>{escape(attended.caption)}</title>\n<rect width="100%" height="100%" fill="white"/>',
    ]
    for word, picture, x, y in panels:
        size = f'width="{picture.width}" height="{picture.height}"'
        lines.append(f'<image x="{x}" y="{y}" {size} href="{data_uri(picture, "jpeg", quality=85)}"/>')
        if word:
            lines.append(f'<text x="{x + picture.width / 2}" y="{y - FONT_SIZE * 0.5}">{escape(word)}</text>')
    return "\n".join([*lines, "</svg>\n"]).encode()


def data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    """An image inside a page or figure; `options` are those of Pillow's `save`."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _gif(image: Image.Image, attended: AttendedCaption) -> bytes:
    pictures = _pictures(image, attended, total=800_000, each=280**2, longest=560)
    image_width, image_height = pictures[0].size
    width = max(image_width, 240, *(ceil(_font().getlength(word)) + 2 * GAP for word in ["", *attended.words]))
    places = _places(attended.words, width - 2 * GAP)
    caption_height = ceil(places[-1][2] + LINE / 2) if places else LINE
    frames = []
    for number, picture in enumerate(pictures, start=-1):  # -1: the image alone
        frame = Image.new("RGB", (width, image_height + GAP + caption_height + GAP), "white")
        frame.paste(picture, ((width - image_width) // 2, 0))
        draw = ImageDraw.Draw(frame)
        for other, (word, (start, end, middle)) in enumerate(zip(attended.words, places, strict=True)):
            x, y = GAP + start, image_height + GAP + middle
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
    """The position of each word in centred lines of text: left end, right end, and the line's vertical centre."""
    space = FONT_SIZE / 2
    lines: list[list[float]] = [[]]  # widths of the words
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


def _pictures(image: Image.Image, attended: AttendedCaption, total: int, each: int, longest: int) -> list[Image.Image]:
    """The image and a highlighted copy per word: at most `total` pixels in all, `each` per copy, `longest` per side."""
    pixels = min(each, total / (len(attended.words) + 1))
    scale = min(sqrt(pixels / (image.width * image.height)), longest / max(image.size))
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    image = image.resize(size, Image.Resampling.LANCZOS)
    return [image, *(lit(image, light) for light in lights(attended, *size))]


def _dithered(image: Image.Image) -> Image.Image:
    """The image in 256 colours: it looks the same at a third of the bytes."""
    palette = image.quantize(256, method=Image.Quantize.FASTOCTREE)
    return image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)
