"""An image and its captions as HTML for the page. All input is escaped."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from showattend.attention.figures import AMBER, data_uri, lights
from showattend.attention.maps import AttendedCaption

from .uploads import read_image

IMAGE_SIDE = 1280  # pixels, along the longer side
EXAMPLE_SIDE = 320
SHADE_SIDE = 48  # the browser stretches it smoothly
NIGHT = (12, 10, 8)


def image_html(image: Image.Image) -> str:
    """The image under a layer that a word's attention shades. Screen readers take the captions as its text."""
    return (
        f'<div class="frame" style="--ratio: {image.width / image.height:.4f}">'
        f'<img src="{_jpeg(image, IMAGE_SIDE)}" alt="Your photo" aria-labelledby="announcement">'
        '<div class="shade"></div></div>'
    )


def captions_html(captions: Sequence[AttendedCaption], growing: bool = False) -> str:
    """Sentences of words to point at. Screen readers announce them once they are complete."""
    lines = []
    for number, caption in enumerate(captions, start=1):
        words = " ".join(
            f'<button type="button" class="word" tabindex="{-1 if position else 0}" aria-pressed="false" '
            f'data-shade="{_shade(light)}">{escape(word)}</button>'
            for position, (word, light) in enumerate(zip(caption.words, _small_lights(caption), strict=True))
        )
        name = f"Caption {number}" if len(captions) > 1 else "Caption"
        lines.append(f'<p class="caption" role="group" aria-label="{name}">{words}</p>')
    if growing and not lines:
        lines.append('<p class="caption waiting">Looking …</p>')
    announced = "" if growing else " ".join(f"{caption.caption}." for caption in captions)
    return (
        f'<div class="captions{" growing" if growing else ""}">{"".join(lines)}</div>'
        f'<p id="announcement" class="unseen" role="status">{escape(announced)}</p>'
    )


def examples_html(examples: Sequence[Path]) -> str:
    """Images to choose from, named by their files."""
    buttons = (
        f'<button type="button" data-number="{number}">'
        f'<img src="{_jpeg(read_image(path), EXAMPLE_SIDE)}" alt="Example photo: {escape(path.stem)}"></button>'
        for number, path in enumerate(examples)
    )
    return f"<p>Or try one of these</p>{''.join(buttons)}"


def error_html(message: object) -> str:
    return f'<p role="alert">{escape(str(message))}</p>'


def _small_lights(caption: AttendedCaption) -> np.ndarray:
    width, height = caption.size
    scale = SHADE_SIDE / max(caption.size)
    return lights(caption, max(round(width * scale), 1), max(round(height * scale), 1))


def _shade(light: np.ndarray) -> str:
    """The overlay while a word is pointed at: dark where the network did not look, amber where it did."""
    share = light[..., None]  # (height, width, 1)
    colour = share * np.array(AMBER) + (1 - share) * np.array(NIGHT)
    alpha = 255 * (0.1 * share + 0.8 * (1 - share))
    return data_uri(Image.fromarray(np.concatenate([colour, alpha], axis=2).round().astype(np.uint8)), "png")


def _jpeg(image: Image.Image, longest: int) -> str:
    shown = image.copy()
    shown.thumbnail((longest, longest))
    return data_uri(shown, "jpeg", quality=85)
