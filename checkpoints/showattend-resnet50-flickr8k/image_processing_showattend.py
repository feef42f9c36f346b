"""Turns images of every kind into `pixel_values`: upright, RGB, resized to the network's input."""

import io
import os
import string
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)

CHANNELS = (1, 3, 4)  # grayscale, RGB, RGBA


def load_image(
    source: Any, *, name: str = "the image", input_data_format: str | None = None, timeout: float = 10.0
) -> Image.Image:
    """Reads one image as people see it: upright (EXIF), RGB, 8 bits, first frame, transparent parts on white.

    Args:
        source: A path, an http(s) URL, a PIL image, the bytes of an image file, an open binary file, or an array or
            tensor of shape (height, width), (height, width, channels) or (channels, height, width) with 1, 3 or 4
            channels: uint8, uint16, or float from 0 to 1.
        name: What an error calls a source that has no path or URL of its own.
        input_data_format: `"channels_first"` or `"channels_last"`, for arrays whose shape is ambiguous.
        timeout: Seconds that a URL's server may stay silent.

    Raises:
        OSError: The source cannot be read as an image: no such file (FileNotFoundError), not an image, damaged,
            more pixels than Pillow's limit against decompression bombs, or a URL that does not answer.
        ValueError: The source is of another type, or an array of another shape, dtype or range.
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        return _upright_rgb(_array_to_pil(source, name, input_data_format))
    name = _own_name(source) or name
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        source = _download(source, timeout)
    elif isinstance(source, bytes | bytearray):
        source = io.BytesIO(source)
    elif not (isinstance(source, str | os.PathLike | Image.Image) or hasattr(source, "read")):
        raise ValueError(
            f"{name} must be a path, a URL, a PIL image, an array, a tensor, bytes or an open file, "
            f"not {type(source).__name__}"
        )
    try:
        if isinstance(source, Image.Image):
            return _upright_rgb(source)
        with Image.open(source) as image:
            return _upright_rgb(image)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such image file: {name}") from error
    except UnidentifiedImageError as error:
        raise OSError(f"cannot read {name}: it is empty or in no image format that Pillow knows") from error
    except Exception as error:  # Pillow's decoders raise almost any exception on a damaged file
        raise OSError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error


def _own_name(source: Any) -> str | None:
    """The path or URL of a source, shortened if it is too long to be one; None if there is none."""
    if isinstance(source, Image.Image):
        source = getattr(source, "filename", None)
    elif hasattr(source, "read"):
        source = getattr(source, "name", None)
    if not isinstance(source, str | os.PathLike):
        return None
    name = os.fspath(source)
    name = name if isinstance(name, str) else os.fsdecode(name)
    return name if len(name) <= 500 else f"{name[:100]}..."


def _download(url: str, timeout: float) -> io.BytesIO:
    # Some servers refuse Python's own User-Agent; spaces and letters beyond ASCII must be escaped in a request.
    request = Request(quote(url, safe=string.punctuation), headers={"User-Agent": "Mozilla/5.0 (showattend)"})
    try:
        with urlopen(request, timeout=timeout) as response:
            return io.BytesIO(response.read())
    except (OSError, HTTPException, ValueError) as error:
        raise OSError(f"cannot download {url}: {error}") from error


def _array_to_pil(array: np.ndarray | torch.Tensor, name: str, input_data_format: str | None) -> Image.Image:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()  # numpy has no bfloat16

    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"{name} is an array of shape {array.shape}, not of one image in 2 or 3 dimensions")
    if array.ndim == 3:
        fits = {ChannelDimension.FIRST: array.shape[0] in CHANNELS, ChannelDimension.LAST: array.shape[2] in CHANNELS}
        layouts = [layout for layout, fit in fits.items() if fit and input_data_format in (None, layout)]
        if len(layouts) != 1:
            raise ValueError(
                f"{name} is an array of shape {array.shape}, which is {'both' if layouts else 'neither'} (height, "
                f"width, channels) {'and' if layouts else 'nor'} (channels, height, width) with 1, 3 or 4 channels"
                + (f" and input_data_format={str(input_data_format)!r}" if input_data_format else "")
                + (": say which with input_data_format" if layouts else "")
            )
        if layouts == [ChannelDimension.FIRST]:
            array = np.moveaxis(array, 0, -1)
        if array.shape[2] == 1:
            array = array[:, :, 0]

    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # a NaN fails both
            raise ValueError(
                f"{name} is a float array from {array.min():g} to {array.max():g}; "
                "floats must be from 0 to 1, values from 0 to 255 must be uint8"
            )
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.uint16):
        array = np.rint(array / 257).astype(np.uint8)  # 65535 = 257 * 255
    elif array.dtype != np.uint8:
        raise ValueError(f"{name} is an array of {array.dtype}, which must be uint8, uint16 or float from 0 to 1")
    return Image.fromarray(array)


def _upright_rgb(image: Image.Image) -> Image.Image:
    # Pillow reads 16-bit PGM files (and PNG files in older versions) as mode "I".
    has_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    image = ImageOps.exif_transpose(image)
    if has_16_bits:  # Pillow's own conversion would clip everything above 255
        image = _array_to_pil(np.asarray(image).astype(np.uint16), "", None)
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} (32 bits) have no agreed range; convert them to 8 bits first")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _flatten(images: Any) -> Iterator[Any]:
    """The images of a batch, which may be a nested list or an array of 4 dimensions."""
    is_batch_array = isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4
    if is_batch_array or (isinstance(images, Sequence) and not isinstance(images, str | bytes | bytearray)):
        for image in images:
            yield from _flatten(image)
    else:
        yield images


class ShowAttendImageProcessor(PilBackend):
    """Turns images into the captioner's `pixel_values`, a float32 tensor of shape (batch, 3, height, width).

    By default an image is squashed to 224x224 as torchvision's `Resize((224, 224))` does (bilinear, antialiased),
    scaled to 0..1 and normalised with ImageNet's mean and standard deviation. `size={"shortest_edge": 256}` with
    `do_center_crop=True` keeps its proportions and its centre; `do_normalize=False` leaves the values in 0..1. The
    pixels are computed by Pillow, whatever `backend` or `use_fast` is, so they are always the same.

    A call takes anything that [`load_image`] reads, or a list of such, and raises its errors.
    """

    do_resize = True
    size = SizeDict(height=224, width=224)
    resample = PILImageResampling.BILINEAR
    do_center_crop = False
    crop_size = SizeDict(height=224, width=224)
    do_rescale = True
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD

    def fetch_images(self, image_url_or_urls: Any, input_data_format: str | None = None) -> list[Image.Image]:
        """Reads an image or a (nested) list of images into a flat list of upright RGB images."""
        sources = list(_flatten(image_url_or_urls))
        if not sources:
            raise ValueError("images is empty: give at least one image")
        return [
            load_image(source, name=f"image {number} of the batch", input_data_format=input_data_format)
            for number, source in enumerate(sources, start=1)
        ]

    def attention_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of the upright image that the network sees, and that its attention grid covers.

        Args:
            width, height: Size of the upright image in pixels.

        Returns:
            (left, top, right, bottom) in pixels of the image: the whole image if it is squashed, its centre if it is
            cropped (beyond the edges if the crop is larger than the resized image and padded).
        """
        if not self.do_center_crop:
            return 0.0, 0.0, float(width), float(height)
        settings = self._standardize_kwargs(
            size=self.size, crop_size=self.crop_size, default_to_square=self.default_to_square
        )
        size, crop = settings["size"], settings["crop_size"]
        if not self.do_resize:
            new_width, new_height = width, height
        elif set(dict(size)) == {"shortest_edge"}:
            new_width, new_height = (int(size.shortest_edge * side / min(width, height)) for side in (width, height))
        elif set(dict(size)) == {"height", "width"}:
            new_width, new_height = size.width, size.height
        else:
            raise ValueError(f"size must have height and width, or shortest_edge alone, but is {dict(size)}")
        left, top = (new_width - crop.width) // 2, (new_height - crop.height) // 2
        scale_x, scale_y = width / new_width, height / new_height
        return left * scale_x, top * scale_y, (left + crop.width) * scale_x, (top + crop.height) * scale_y

    def _preprocess_image_like_inputs(self, images: Any, **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        return_tensors = kwargs.pop("return_tensors", None)
        arrays = [
            self.process_image(image) for image in self.fetch_images(images, kwargs.pop("input_data_format", None))
        ]
        features = self._preprocess(arrays, return_tensors=None, **kwargs)
        sizes = {f"{image.shape[2]}x{image.shape[1]}" for image in features["pixel_values"]}
        if len(sizes) > 1:
            raise ValueError(
                f"the images of the batch end in different sizes ({', '.join(sorted(sizes))}): "
                "set do_center_crop=True, or a size with height and width"
            )
        return features.convert_to_tensors(return_tensors)


ShowAttendImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = ["ShowAttendImageProcessor", "load_image"]
