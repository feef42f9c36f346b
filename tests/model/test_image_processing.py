"""Every kind of image gives the same correct pixels, or one clear error."""

import http.server
import io
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from modeling_showattend.image_processing_showattend import ShowAttendImageProcessor, load_image


@pytest.fixture
def pixels() -> np.ndarray:
    """An image without any symmetry, (50, 70, 3), in which every 8-bit value occurs."""
    rng = np.random.default_rng(0)
    ramp = np.arange(50 * 70, dtype=np.uint16).reshape(50, 70)
    return np.stack([ramp % 256, ramp // 14, rng.integers(0, 256, (50, 70))], axis=-1).astype(np.uint8)


@pytest.fixture
def image(pixels: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "a photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of tmp_path that refuses Python's own User-Agent and keeps /slow waiting."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/slow":
                time.sleep(1)
            elif "urllib" in self.headers["User-Agent"]:
                self.send_error(403)
            else:
                super().do_GET()

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixel_values(processor: ShowAttendImageProcessor, images: Any) -> torch.Tensor:
    return processor(images, return_tensors="pt")["pixel_values"]


def rgb(source: Any) -> np.ndarray:
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


# --- the pixels ------------------------------------------------------------------------------------------------------


def test_squashes_exactly_as_torchvision(pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    expected = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()])(image)
    actual = pixel_values(ShowAttendImageProcessor(do_normalize=False), image)
    assert actual.dtype == torch.float32 and actual.shape == (1, 3, 224, 224)
    assert torch.equal(actual[0], expected)


def test_rescales_every_value_exactly_as_torchvision() -> None:
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    actual = pixel_values(ShowAttendImageProcessor(do_resize=False, do_normalize=False), image)
    assert torch.equal(actual[0, :1], transforms.ToTensor()(image))


def test_normalises_by_default(pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    expected = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )(image)
    torch.testing.assert_close(pixel_values(ShowAttendImageProcessor(), image)[0], expected)


def test_crops_the_centre_as_torchvision() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    expected = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])(image)
    processor = ShowAttendImageProcessor(size={"shortest_edge": 256}, do_center_crop=True, do_normalize=False)
    assert torch.equal(pixel_values(processor, image)[0], expected)


@pytest.mark.parametrize(
    "kind", ["path", "str", "url", "bytes", "file", "pil", "opened", "hwc", "chw", "float", "half", "tensor"]
)
def test_every_way_in_gives_the_same_pixels(kind: str, image: Path, pixels: np.ndarray, server: str) -> None:
    chw = torch.from_numpy(pixels).permute(2, 0, 1)
    ways: dict[str, Callable[[], Any]] = {
        "path": lambda: image,
        "str": lambda: str(image),
        "url": lambda: f"{server}/a photo.png",
        "bytes": image.read_bytes,
        "file": lambda: io.BytesIO(image.read_bytes()),
        "pil": lambda: Image.fromarray(pixels),
        "opened": lambda: Image.open(image),
        "hwc": lambda: pixels,
        "chw": lambda: np.moveaxis(pixels, -1, 0),
        "float": lambda: pixels.astype(np.float64) / 255,
        "half": lambda: (chw / 255).half(),
        "tensor": lambda: (chw / 255).to(torch.float32).requires_grad_(),
    }
    assert np.array_equal(rgb(ways[kind]()), pixels)
    processor = ShowAttendImageProcessor()
    expected = pixel_values(processor, Image.fromarray(pixels))
    assert torch.equal(pixel_values(processor, ways[kind]()), expected)


def test_an_open_file_stays_open_and_is_read_from_its_start(image: Path, pixels: np.ndarray) -> None:
    with image.open("rb") as file:
        assert np.array_equal(rgb(file), rgb(file))
        assert not file.closed


def test_an_image_given_is_not_changed(pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    load_image(image).paste((0, 0, 0), (0, 0, 70, 50))
    assert np.array_equal(np.asarray(image), pixels)


# Where the first row and the first column of the file belong in the upright image (EXIF 2.3, tag 0x0112).
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright[::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("opened", [False, True])
def test_exif_orientation(orientation: int, opened: bool, pixels: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "phone.webp"
    Image.fromarray(np.ascontiguousarray(STORED[orientation](pixels))).save(path, exif=exif, lossless=True)
    upright = load_image(Image.open(path) if opened else path)
    assert np.array_equal(np.asarray(upright), pixels)
    assert np.array_equal(np.asarray(load_image(upright)), pixels)  # and it is not turned again


def test_transparent_pixels_are_white() -> None:
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[:, :2] = (200, 100, 0, 255)
    rgba[:, 2:4] = (200, 100, 0, 51)  # 20 % over white
    expected = np.zeros((4, 6, 3), np.uint8)
    expected[:, :2], expected[:, 2:4], expected[:, 4:] = (200, 100, 0), (244, 224, 204), 255
    assert np.array_equal(rgb(encode(Image.fromarray(rgba), "PNG")), expected)
    assert np.array_equal(np.asarray(load_image(rgba, input_data_format="channels_last")), expected)
    la = Image.fromarray(rgba).convert("LA")
    assert (rgb(encode(la, "PNG"))[:, 4:] == 255).all() and (rgb(encode(la, "PNG"))[:, 0] < 150).all()


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_palette_with_a_transparent_colour(file_format: str) -> None:
    palette = Image.new("P", (4, 2))
    palette.putpalette([10, 20, 30, 200, 100, 0])
    palette.paste(1, (2, 0, 4, 2))
    expected = np.full((2, 4, 3), (10, 20, 30), np.uint8)
    expected[:, 2:] = (200, 100, 0)
    assert np.array_equal(rgb(encode(palette, file_format)), expected)
    expected[:, 2:] = 255
    assert np.array_equal(rgb(encode(palette, file_format, transparency=1)), expected)


def test_grayscale_one_bit_and_cmyk() -> None:
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    as_rgb = np.repeat(gray[..., None], 3, axis=-1)
    for source in (encode(Image.fromarray(gray), "PNG"), gray, gray[..., None], gray[None], torch.from_numpy(gray)):
        assert np.array_equal(rgb(source), as_rgb)
    assert np.array_equal(rgb(encode(Image.fromarray(gray > 99), "PNG")), np.where(as_rgb > 99, 255, 0))
    cmyk = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")  # red ink
    assert np.abs(rgb(cmyk).astype(int) - (255, 0, 0)).max() < 8


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_and_not_clipped(file_format: str) -> None:
    gray = np.arange(256, dtype=np.uint16).reshape(16, 16)
    expected = np.repeat(gray[..., None], 3, axis=-1)
    assert np.array_equal(rgb(encode(Image.fromarray(gray * 257), file_format)), expected)
    assert np.array_equal(rgb(gray * 257), expected)
    assert np.array_equal(rgb(Image.fromarray(gray * 257)), expected)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(file_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    lossless = {"lossless": True} if file_format == "WEBP" else {}
    animation = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **lossless)
    assert Image.open(io.BytesIO(animation)).n_frames == 3  # type: ignore[attr-defined]
    assert (rgb(animation) == (255, 0, 0)).all()
    assert pixel_values(ShowAttendImageProcessor(), animation).shape == (1, 3, 224, 224)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_batches(image: Path, pixels: np.ndarray) -> None:
    processor = ShowAttendImageProcessor()
    one = pixel_values(processor, image)
    other = pixel_values(processor, pixels[::-1])
    both = torch.cat([one, other])
    for batch in (
        [image, pixels[::-1].copy()],
        (Image.open(image), Image.fromarray(pixels[::-1].copy())),
        [[str(image)], [pixels[::-1].copy()]],
        np.stack([pixels, pixels[::-1]]),
        torch.from_numpy(np.stack([pixels, pixels[::-1]])).permute(0, 3, 1, 2),
    ):
        assert torch.equal(pixel_values(processor, batch), both)
    for single in ([image], [[image]]):
        assert torch.equal(pixel_values(processor, single), one)


def test_images_that_end_in_different_sizes_are_refused(pixels: np.ndarray) -> None:
    processor = ShowAttendImageProcessor(size={"shortest_edge": 100})
    with pytest.raises(ValueError, match=r"different sizes.*100x140, 140x100.*do_center_crop"):
        processor([pixels, pixels.swapaxes(0, 1)], return_tensors="pt")


# --- the errors ------------------------------------------------------------------------------------------------------


def huge_png() -> bytes:
    """A file of 100 bytes that says it is an image of 60000x60000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "truncated", "corrupt", "huge", "folder"])
def test_an_unreadable_file_is_named(damage: str, pixels: np.ndarray, tmp_path: Path) -> None:
    image = Image.fromarray(pixels)
    png, jpeg = bytearray(encode(image, "PNG")), encode(image, "JPEG")
    png[60:90] = bytes(30)
    path = tmp_path / f"{damage}.jpg"
    contents = {"empty": b"", "text": b"<html>", "truncated": jpeg[:-200], "corrupt": bytes(png), "huge": huge_png()}
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(contents[damage])

    with pytest.raises(OSError) as error:
        pixel_values(ShowAttendImageProcessor(), [image, path])
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert isinstance(error.value, FileNotFoundError) == (damage == "missing")
    if damage in contents:
        with pytest.raises(OSError, match="image 3 of the batch"):
            pixel_values(ShowAttendImageProcessor(), [image, image, contents[damage]])
        with pytest.raises(OSError, match="row 7"):
            load_image(contents[damage], name="row 7")


def test_a_damaged_image_that_is_already_opened_is_named(pixels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(encode(Image.fromarray(pixels), "JPEG")[:-200])
    with pytest.raises(OSError, match=r"cut\.jpg.*truncated"):
        load_image(Image.open(path))


def test_a_url_that_does_not_answer_is_named(server: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"{server}/no.png.*404"):
        load_image(f"{server}/no.png")
    with pytest.raises(OSError, match=f"{server}/slow.*timed out"):
        load_image(f"{server}/slow", timeout=0.1)
    with pytest.raises(OSError, match=r"cannot download http://127\.0\.0\.1:1/x\.png: .*refused"):
        load_image("http://127.0.0.1:1/x.png")
    (tmp_path / "page.html").write_text("<html>")
    with pytest.raises(OSError, match=f"{server}/page.html.*no image format"):
        load_image(f"{server}/page.html")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (3, "not int"),
        (None, "not NoneType"),
        (np.zeros((9, 9), np.int64), "int64.*must be uint8"),
        (np.zeros((9, 9, 3)) + 255, "255.*uint8"),
        (np.full((9, 9), np.nan), "nan"),
        (np.zeros((9, 9, 2), np.uint8), r"\(9, 9, 2\).*neither"),
        (np.zeros((3, 9, 3), np.uint8), r"\(3, 9, 3\).*both.*input_data_format"),
        (np.zeros(9, np.uint8), r"\(9,\)"),
        (torch.zeros(3, 0, 9), r"\(3, 0, 9\)"),
        (Image.new("F", (9, 9)), "mode F"),
    ],
)
def test_wrong_images_are_refused(wrong: Any, message: str, pixels: np.ndarray) -> None:
    with pytest.raises((ValueError, OSError), match=f"image 2 of the batch.*{message}"):
        ShowAttendImageProcessor()([pixels, wrong])


def test_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="images is empty"):
        ShowAttendImageProcessor()([])


def test_the_layout_of_an_ambiguous_array_can_be_given() -> None:
    array = np.arange(3 * 9 * 3, dtype=np.uint8).reshape(3, 9, 3)
    processor = ShowAttendImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    first = processor(array, input_data_format="channels_first", return_tensors="np")["pixel_values"][0]
    last = processor(array, input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
    assert np.array_equal(first, array) and np.array_equal(last, np.moveaxis(array, -1, 0))
    with pytest.raises(ValueError, match=r"neither.*channels_first"):
        processor(np.zeros((8, 9, 3), np.uint8), input_data_format="channels_first")


# --- the attention box -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(240, 150), (150, 240), (200, 200), (255, 60)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": {"shortest_edge": 128}, "do_center_crop": True, "crop_size": 112},
        {"size": {"height": 140, "width": 120}, "do_center_crop": True, "crop_size": {"height": 100, "width": 80}},
        {"do_resize": False, "do_center_crop": True, "crop_size": 50},
    ],
)
def test_attention_box(width: int, height: int, settings: dict[str, Any]) -> None:
    processor = ShowAttendImageProcessor(do_normalize=False, do_rescale=False, **settings)
    left, top, right, bottom = processor.attention_box(width, height)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height

    # In this image every pixel says where it is, so the borders of the input show which part of the image it shows.
    x, y = np.meshgrid(np.arange(width, dtype=np.uint8), np.arange(height, dtype=np.uint8))
    seen = processor(np.stack([x, y, y], axis=-1), return_tensors="np")["pixel_values"][0].astype(float)
    step_x, step_y = (right - left) / seen.shape[2], (bottom - top) / seen.shape[1]  # image pixels per input pixel
    middle = seen[:, seen.shape[1] // 2, seen.shape[2] // 2]
    assert seen[0, 0, 10] == pytest.approx(left + 10.5 * step_x - 0.5, abs=1)
    assert seen[0, 0, -10] == pytest.approx(right - 9.5 * step_x - 0.5, abs=1)
    assert seen[1, 10, 0] == pytest.approx(top + 10.5 * step_y - 0.5, abs=1)
    assert seen[1, -10, 0] == pytest.approx(bottom - 9.5 * step_y - 0.5, abs=1)
    assert middle[0] == pytest.approx((left + right + step_x) / 2 - 0.5, abs=1.5)


def test_attention_box_covers_a_squashed_image() -> None:
    assert ShowAttendImageProcessor().attention_box(640, 480) == (0, 0, 640, 480)
    cropped = ShowAttendImageProcessor(size={"shortest_edge": 256}, do_center_crop=True, crop_size=256)
    # 640x480 becomes 341x256, of which the columns from 42 to 298 remain.
    assert cropped.attention_box(640, 480) == pytest.approx((42 * 640 / 341, 0, 298 * 640 / 341, 480))
