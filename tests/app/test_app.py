"""The browser app: captions that grow, images from strangers, the server's limits, and the page in a real Chromium."""

import importlib.util
import io
import re
import runpy
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_flickr import ROOT, run_command

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from showattend.attention.maps import attend
from showattend.attention.streaming import stream_captions
from showattend.captioning.generate import TorchCaptioner

if not importlib.util.find_spec("gradio"):
    pytest.skip('the app needs gradio: pip install -c constraints.txt -e ".[dev]"', allow_module_level=True)

import httpx
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from showattend.app import page, server, uploads
from showattend.app.views import captions_html

CHROMIUM = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"


@pytest.fixture
def model(make_model: Callable[..., ShowAttendForConditionalGeneration]) -> ShowAttendForConditionalGeneration:
    return make_model(seed=0)


def image(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "first.png", tmp_path / "second.png"]
    for seed, path in zip((0, 7), paths, strict=True):
        image(seed).save(path)
    return paths


@pytest.fixture
def greedy_captions(
    model: ShowAttendForConditionalGeneration, processor: ShowAttendProcessor, images: list[Path]
) -> list[str]:
    """The greedy captions of `images`."""
    captions = [attend(model, processor, path, suppress_tokens=[0]).caption for path in images]
    assert len(set(captions)) == 2 and all(len(set(caption.split())) > 1 for caption in captions)
    return captions


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def url(model: ShowAttendForConditionalGeneration, processor: ShowAttendProcessor, images: list[Path]) -> Iterator[str]:
    with server.serving(model, processor, images[:1], port=free_port()) as url:
        yield url.rstrip("/")


# Captions that grow


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 0.7}, {"num_beams": 3, "num_captions": 2}])
def test_streamed_captions_are_those_of_generate(
    model: ShowAttendForConditionalGeneration, processor: ShowAttendProcessor, settings: dict[str, Any]
) -> None:
    torch.manual_seed(5)
    *growing, last = stream_captions(model, processor, image(0), **settings)
    torch.manual_seed(5)
    generation = {("num_return_sequences" if name == "num_captions" else name): settings[name] for name in settings}
    sequences = model.generate(**processor(images=image(0), return_tensors="pt"), **generation, suppress_tokens=[0])
    assert [caption.caption for caption in last] == processor.batch_decode(sequences, skip_special_tokens=True)
    if "num_beams" not in settings:
        lengths = [len(captions[0].words) for captions in growing]
        assert lengths == sorted(lengths) and lengths[0] == 1 and len(set(lengths)) > 1
        assert all(last[0].words[: length - 1] == growing[i][0].words[:-1] for i, length in enumerate(lengths))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_streamed_attention_is_that_of_attend(
    model: ShowAttendForConditionalGeneration, processor: ShowAttendProcessor, num_beams: int
) -> None:
    expected = attend(model, processor, image(8), num_beams=num_beams, suppress_tokens=[0])
    *_, (caption,) = stream_captions(model, processor, image(8), num_beams=num_beams)
    assert caption.words == expected.words and len(caption.words) > 1
    np.testing.assert_allclose(caption.grids, expected.grids, atol=1e-6)
    assert (caption.box, caption.size) == (expected.box, expected.size)


def test_samples_are_generated_one_after_another(
    model: ShowAttendForConditionalGeneration, processor: ShowAttendProcessor
) -> None:
    states = list(stream_captions(model, processor, image(0), num_captions=2, do_sample=True))
    counts = [len(captions) for captions in states]
    assert counts == sorted(counts) and set(counts) == {1, 2}
    first = states[counts.index(2) - 1][0].caption
    assert all(captions[0].caption == first for captions in states if len(captions) == 2)


def test_a_caption_ends_at_the_longest_length(
    make_model: Callable[..., ShowAttendForConditionalGeneration], processor: ShowAttendProcessor
) -> None:
    model = make_model()
    model.decoder.fcn.bias.data[3] = -1e4  # never [SEP]
    *_, (caption,) = stream_captions(model, processor, image(0), max_length=6)
    assert len(caption.words) == 5


# What the page shows


def test_words_are_escaped_and_carry_their_own_attention(
    model: ShowAttendForConditionalGeneration, processor: ShowAttendProcessor
) -> None:
    *_, captions = stream_captions(model, processor, image(0))
    captions[0].words[0] = '<b>"'
    html = captions_html(captions)
    assert "<b>" not in html and "&lt;b&gt;&quot;" in html
    shades = re.findall(r'data-shade="([^"]+)"', html)
    assert len(set(shades)) == len(captions[0].words)
    assert f'role="status">{captions[0].caption}.</p>' in html
    assert 'role="status"></p>' in captions_html(captions, growing=True)  # a screen reader does not announce every word


def test_controls_stay_within_their_bounds() -> None:
    assert page.generation_settings(page.BEAMS, 1e9, 1, 1e9)["num_beams"] == 10
    assert page.generation_settings(page.BEAMS, 2, 1, 5)["num_captions"] == 2
    assert page.generation_settings(page.SAMPLES, 1, -1, 1e9) == {
        "num_beams": 1,
        "do_sample": True,
        "temperature": 0.1,
        "num_captions": 5,
    }
    assert page.generation_settings("anything", 9, 9, 9) == {"num_beams": 1, "do_sample": False}


def broken_files(folder: Path) -> dict[str, Path]:
    """One file of each kind that cannot be captioned, keyed by a word of its error."""
    text, cut, bomb = folder / "text.jpg", folder / "cut.jpg", folder / "bomb.png"
    text.write_text("no photo")
    jpeg = io.BytesIO()
    image(0, 640, 480).save(jpeg, "JPEG")
    cut.write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    Image.new("1", (20_000, 20_000)).save(bomb)
    unreadable = "not a photo that can be read"
    return {unreadable: text, "damaged": cut, "too large": bomb, "no longer kept": folder / "gone.png"}


def test_a_broken_file_is_refused_without_its_path(tmp_path: Path) -> None:
    for reason, path in broken_files(tmp_path).items():
        with pytest.raises(OSError, match=reason) as error:
            uploads.read_image(path)
        assert str(tmp_path) not in str(error.value)


def test_the_pixels_are_counted_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(0).save(tmp_path / "photo.png")
    monkeypatch.setattr(uploads, "load_image", lambda *_: pytest.fail("it was decoded"))
    monkeypatch.setattr(uploads, "MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(OSError, match="too large"):
        uploads.read_image(tmp_path / "photo.png")


# The server


def ask(url: str, path: Path, *controls: Any) -> list[str]:
    """Send an image as a separate client; return the growing caption, and what a screen reader announces at the end."""
    client = Client(url, verbose=False, analytics_enabled=False)
    job = client.submit(handle_file(path), *(controls or (page.GREEDY, 3, 1, 3)), api_name="/page")
    job.result(timeout=120)
    views = [str(outputs[-1]) for outputs in job.outputs()]
    states = [" ".join(re.findall(r">([^<]+)</button>", view)) for view in views]
    return [*states, *re.findall(r'role="status">([^<]*)<', views[-1])]


def test_two_people_at_once_get_their_own_captions_word_by_word(
    url: str, images: list[Path], greedy_captions: list[str]
) -> None:
    with ThreadPoolExecutor(2) as people:
        answers = list(people.map(partial(ask, url), images))
    for states, caption in zip(answers, greedy_captions, strict=True):
        assert states[-1] == f"{caption}."
        words = caption.split()
        assert [" ".join(words[:count]) for count in range(1, len(words))] == [
            state for state in dict.fromkeys(states) if state and len(state.split()) < len(words)
        ]


@pytest.fixture
def program(url: str) -> Callable[..., Any]:
    """Calls /caption as a program does."""
    return partial(Client(url, verbose=False, analytics_enabled=False).predict, api_name="/caption")


def test_programs_get_json(
    program: Callable[..., Any],
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    images: list[Path],
) -> None:
    for num_beams in (1, 3):
        answer = program(handle_file(images[0]), num_beams=num_beams)
        expected = attend(model, processor, images[0], num_beams=num_beams, suppress_tokens=[0])
        (caption,) = answer["captions"]
        assert caption["caption"] == expected.caption and caption["words"] == expected.words
        np.testing.assert_allclose(np.reshape(caption["grids"], expected.grids.shape), expected.grids, atol=1e-6)
        assert (tuple(answer["box"]), tuple(answer["size"])) == (expected.box, expected.size)
        captioner = TorchCaptioner(model, processor, num_beams=num_beams, suppress_tokens=[0])
        [[(text, score)]] = captioner.caption([captioner.read(images[0])])
        assert (caption["caption"], caption["score"]) == (text, pytest.approx(score))


def test_programs_compare_captions(program: Callable[..., Any], images: list[Path]) -> None:
    beams = program(handle_file(images[0]), num_beams=4, num_captions=3)["captions"]
    assert len(beams) == 3 and len({caption["caption"] for caption in beams}) > 1
    samples = program(handle_file(images[0]), num_captions=4, do_sample=True, temperature=1.5)["captions"]
    scores = [caption["score"] for caption in samples]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True)


def test_programs_meet_the_limits_of_the_page(program: Callable[..., Any], images: list[Path], tmp_path: Path) -> None:
    image = handle_file(images[0])
    for settings, message in (
        ({"num_beams": 11}, "num_beams must be from 1 to 10, not 11"),
        ({"num_beams": "two"}, "num_beams must be from 1 to 10, not 'two'"),
        ({"num_captions": 6}, "num_captions must be from 1 to 5, not 6"),
        ({"num_captions": 2}, "num_captions 2 needs 2 or more num_beams, not 1, or do_sample"),
        ({"do_sample": True, "num_beams": 2}, "choose one of them"),
        ({"do_sample": True, "temperature": 0}, "temperature must be from 0.1 to 2.0, not 0"),
    ):
        with pytest.raises(AppError, match=message):
            program(image, **settings)
    for reason, path in broken_files(tmp_path).items():
        if path.exists():
            with pytest.raises(AppError, match=reason):
                program(handle_file(path))
    with pytest.raises(AppError, match="image must be an uploaded file"):
        program(str(images[0]))
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        program({"path": str(images[0])})
    (tmp_path / "large.jpg").write_bytes(b"0" * (uploads.MAX_BYTES + 1))
    with pytest.raises(Exception, match=r"413|too large|exceeds"):
        program(handle_file(tmp_path / "large.jpg"))


def test_images_are_uploads_and_nothing_else(url: str, tmp_path: Path, images: list[Path]) -> None:
    secret = tmp_path / "secret.png"
    image(0).save(secret)
    with httpx.Client(base_url=url, timeout=60) as client:
        functions = client.get("/config").json()["dependencies"]
        number = next(function["id"] for function in functions if function["api_name"] == "page")

        def join(data: list[Any]) -> int:
            body = {"data": data, "fn_index": number, "session_hash": "me"}
            return client.post("/gradio_api/queue/join", json=body).status_code

        (upload,) = client.post("/gradio_api/upload", files={"files": images[0].open("rb")}).json()
        meta, controls = {"_type": "gradio.FileData"}, [page.GREEDY, 3, 1, 3]
        assert join([{"path": upload, "meta": meta}, *controls]) == 200
        for path in (
            str(secret),
            f"{Path(upload).parent}/../../{secret}",
            f"{url}/config",
            "https://example.org/a.png",
            None,
        ):
            assert join([{"path": path, "url": path, "meta": meta}, *controls]) == 403, path
            assert join([None, {"path": path, "url": path, "meta": meta}, 3, 1, 3]) == 403, path
        assert client.post("/gradio_api/queue/join", content=b"{").status_code == 403
        for route in (f"file={secret}", "file=/etc/passwd", f"file={url}/config", f"proxy={url}/config", "run/tell"):
            assert client.get(f"/gradio_api/{route}").status_code in (403, 404), route
        assert client.get(f"/gradio_api/file={upload}").status_code == 200  # as the page itself shows it
        large = client.post("/gradio_api/upload", files={"files": ("a.jpg", b"0" * (uploads.MAX_BYTES + 1))})
        assert large.status_code == 413


def test_uploads_are_deleted_after_a_while_and_at_the_end(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    images: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def upload(url: str) -> Path:
        return Path(httpx.post(f"{url}gradio_api/upload", files={"files": images[0].open("rb")}).json()[0])

    monkeypatch.setattr(page, "UPLOADS_KEPT", 1)
    monkeypatch.setattr(page, "UPLOADS_CHECKED", 1)
    with server.serving(model, processor, port=free_port()) as url:
        path, deadline = upload(url), time.monotonic() + 60
        assert path.exists()
        while path.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not path.exists()
        folder = upload(url).parent.parent
    assert not folder.exists()


# The page in a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    how = "pip install playwright, then apt install chromium or playwright install chromium"
    sync_api = pytest.importorskip("playwright.sync_api", reason=f"the page is tested in Chromium: {how}")
    with sync_api.sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome")
        path = next(filter(None, map(shutil.which, names)), playwright.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip(f"the page is tested in Chromium, which is not installed: {how}")
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM.split())
        yield browser
        browser.close()


class Visitor:
    """A visitor with a separate browser window."""

    def __init__(self, browser: Any, url: str, **window: Any) -> None:
        self.window = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **window})
        self.window.set_default_timeout(120_000)
        self.requests: list[str] = []
        self.window.on("request", lambda request: self.requests.append(request.url))
        self.page = self.window.new_page()
        self.page.goto(url)

    def choose(self, path: Path) -> None:
        self.page.set_input_files("#image-input input[type=file]", path)

    def caption(self) -> str:
        self.page.wait_for_selector("#announcement:not(:empty)", state="attached")
        return str(self.page.inner_text("#announcement")).removesuffix(".")

    def shade(self) -> str:
        """What lies above the image, or nothing."""
        script = "e => e.classList.contains('on') ? e.style.backgroundImage : ''"
        return str(self.page.locator("#image .shade").evaluate(script))

    def word(self, number: int) -> Any:
        return self.page.locator("#captions .word").nth(number)


def test_the_attention_changes_with_the_word(
    chromium: Any, url: str, images: list[Path], greedy_captions: list[str]
) -> None:
    visitor, other = Visitor(chromium, url), Visitor(chromium, url)
    visitor.choose(images[0])
    other.choose(images[1])
    assert [visitor.caption(), other.caption()] == greedy_captions
    other.window.close()
    assert visitor.page.get_by_role("img", name=greedy_captions[0]).count() == 1  # the caption is the image's text
    assert visitor.shade() == ""

    shades = []
    for number in range(2):
        visitor.word(number).hover()
        shades.append(visitor.shade())
        assert visitor.word(number).get_attribute("data-shade") in shades[number]
    assert shades[0] != shades[1]
    visitor.page.mouse.move(5, 5)
    assert visitor.shade() == ""

    visitor.word(0).focus()
    assert visitor.shade() == shades[0]
    visitor.page.keyboard.press("ArrowRight")
    assert visitor.shade() == shades[1]
    visitor.page.keyboard.press("Tab")
    assert visitor.shade() == ""

    visitor.word(1).click()
    visitor.page.mouse.move(5, 5)
    assert visitor.shade() == shades[1]  # it stays, as on a touch screen
    visitor.window.close()


def test_the_page_is_complete_without_internet_and_fits_a_phone(
    chromium: Any, url: str, images: list[Path], greedy_captions: list[str]
) -> None:
    visitor = Visitor(chromium, url, viewport={"width": 360, "height": 740}, has_touch=True, color_scheme="dark")
    visitor.page.get_by_role("button", name="Example photo: first").tap()
    assert visitor.caption() == greedy_captions[0]
    visitor.word(1).tap()
    assert visitor.shade() != ""
    visitor.page.get_by_role("button", name="How it chooses its words").tap()
    visitor.page.get_by_label("Beam search").check()
    visitor.page.get_by_label("range slider for Beams").wait_for()
    visitor.page.get_by_role("button", name="Caption again").tap()
    visitor.page.wait_for_selector("#captions .caption:nth-of-type(3)")
    visitor.page.set_viewport_size({"width": 360, "height": 450})
    visitor.page.locator("#captions .caption").last.evaluate("caption => caption.scrollIntoView({block: 'end'})")
    assert visitor.page.locator("#image").bounding_box()["y"] >= 0  # visible, for the light of the last word
    assert visitor.page.evaluate("document.documentElement.scrollWidth") == 360
    assert [request for request in visitor.requests if not request.startswith((url, "data:", "blob:"))] == []
    visitor.window.close()


def test_a_broken_file_gives_a_message_and_the_page_lives_on(
    chromium: Any, url: str, images: list[Path], greedy_captions: list[str], tmp_path: Path
) -> None:
    visitor = Visitor(chromium, url)
    files = broken_files(tmp_path)
    for reason in ("not a photo that can be read", "damaged"):
        visitor.choose(files[reason])
        visitor.page.get_by_role("alert").filter(has_text=reason).wait_for()
        visitor.page.locator("#image-input img").wait_for(state="detached")  # removed: the next image gets a new input
    visitor.choose(images[1])
    assert visitor.caption() == greedy_captions[1]
    assert visitor.page.get_by_role("alert").count() == 0
    visitor.page.get_by_role("button", name="Another photo").click()
    visitor.page.get_by_role("button", name="Example photo: first").click()
    visitor.page.locator("#announcement", has_text=greedy_captions[0]).wait_for(state="attached")
    visitor.window.close()


def test_an_image_that_is_chosen_while_others_are_served_is_captioned(
    chromium: Any, url: str, images: list[Path], greedy_captions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def held(*arguments: Any, **settings: Any) -> Iterator[Any]:
        begun.set()
        assert go_on.wait(timeout=120)
        yield from stream_captions(*arguments, **settings)

    visitor = Visitor(chromium, url)
    visitor.choose(images[0])
    assert visitor.caption() == greedy_captions[0]
    monkeypatch.setattr(page, "stream_captions", held)
    with ThreadPoolExecutor(1) as somebody_else:
        answer = somebody_else.submit(ask, url, images[0])
        assert begun.wait(timeout=120)
        visitor.page.get_by_role("button", name="Another photo").click()
        visitor.page.get_by_role("button", name="Example photo: first").wait_for()
        visitor.choose(images[1])
        visitor.page.locator("#image-input img").wait_for()
        visitor.page.locator("#image-input", has_text="queue").wait_for()
        go_on.set()
        visitor.page.locator("#announcement", has_text=greedy_captions[1]).wait_for(state="attached")
        answer.result(timeout=120)
    visitor.window.close()


# The command and the Space


def test_wrong_arguments_and_a_missing_gradio_give_one_sentence(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    capsys.readouterr()
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def error(*arguments: object) -> str:
        assert run_command("app", *arguments) == 2
        output = capsys.readouterr()
        assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1
        return output.err

    assert str(tmp_path / "none") in error("--checkpoint", tmp_path / "none")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in error("--checkpoint", tmp_path / "checkpoint", "--port", port)
    assert "port" in error("--checkpoint", tmp_path / "checkpoint", "--port", 99999)
    monkeypatch.delitem(sys.modules, "showattend.app.server")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install" in error()


def test_the_space_serves_the_captioner_that_its_settings_name(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    monkeypatch.setenv("CHECKPOINT", str(tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    serving, port, served = server.serving, free_port(), []

    @contextmanager
    def visited(*arguments: Any, **options: Any) -> Iterator[None]:
        with serving(*arguments, **{**options, "port": port}):
            served.append(httpx.get(f"http://127.0.0.1:{port}/").status_code)
            raise KeyboardInterrupt
        yield

    monkeypatch.setattr(server, "serving", visited)
    with pytest.raises(KeyboardInterrupt):
        runpy.run_path(str(ROOT / "space" / "app.py"))
    assert served == [200]


def test_the_space_takes_the_versions_that_were_tested() -> None:
    header = yaml.safe_load((ROOT / "space" / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (ROOT / "space" / header["app_file"]).is_file()
    tested = [line.split(";")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = re.findall(r"^[\w-]+==.+$", (ROOT / "space" / "requirements.txt").read_text(), flags=re.MULTILINE)
    assert len(pinned) > 3
    assert {f"gradio=={header['sdk_version']}", *pinned} <= set(tested)
