"""The static page in web/: the captions of Python's OnnxCaptioner, made by a real Chromium from files alone."""

import base64
import importlib.util
import io
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_flickr import ROOT
from transformers import BertTokenizer

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendImageProcessor, ShowAttendProcessor
from showattend.attention.maps import words_and_grids
from showattend.export.onnx_captioner import Caption, OnnxCaptioner, preprocess, read_image

if missing := [
    name for name in ("onnx", "onnxscript", "onnxruntime", "playwright") if not importlib.util.find_spec(name)
]:
    pytest.skip(f"web/ is tested with {', '.join(missing)}: pip install them", allow_module_level=True)
if not (shutil.which("node") and (ROOT / "web/node_modules/onnxruntime-web").is_dir()):
    pytest.skip("web/ needs Node.js and its package: npm ci --ignore-scripts --prefix web", allow_module_level=True)

from playwright.sync_api import Browser, Page, sync_playwright

from showattend.export.onnx_export import export_onnx

WEB = ROOT / "web"
CHROMIUM = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
BEAMS = 3


def build(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "INIT_CWD"}
    command = ["node", str(WEB / "build.js"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture
def captioner(
    make_model: Callable[..., ShowAttendForConditionalGeneration],
    processor: ShowAttendProcessor,
    images: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> OnnxCaptioner:
    """With the first random weights whose captions have words and differ between images; exported once."""
    folder = tmp_path_factory.getbasetemp() / "web"
    if not folder.exists():
        pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]

        def captions(model: ShowAttendForConditionalGeneration) -> list[str]:
            searches = [model.generate(pixel_values=pixel_values, num_beams=num_beams) for num_beams in (1, BEAMS)]
            return [text for ids in searches for text in processor.batch_decode(ids, skip_special_tokens=True)]

        def say_something(texts: list[str]) -> bool:
            return all(texts) and len(set(texts)) > 2 and all(" " in text for text in texts[1::2])  # of the squares

        random = (make_model(seed) for seed in range(100))
        model = next(model for model in random if say_something(captions(model)))
        checkpoint = tmp_path_factory.mktemp("checkpoint")
        model.save_pretrained(checkpoint)
        processor.save_pretrained(checkpoint)
        export_onnx(checkpoint, folder / "onnx", ["float32"])
        assert "MB" in build(folder / "onnx", "float32", folder / "dist").stdout
    return OnnxCaptioner.from_pretrained(folder / "onnx")


@pytest.fixture
def dist(captioner: OnnxCaptioner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "web" / "dist"


@pytest.fixture
def url(dist: Path) -> Iterator[str]:
    with serving(dist) as server:
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def serving(folder: Path) -> ThreadingHTTPServer:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome")
        path = next(filter(None, map(shutil.which, names)), playwright.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip("web/ is tested in Chromium: apt install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM.split())
        yield browser
        browser.close()


def visit(browser: Browser, url: str, **window: Any) -> Page:
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **window})
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(url)
    return page


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """An image, and one of 4x4 squares with parts that are transparent."""
    pixels = np.random.default_rng(1).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    pixels[..., 3] = 255 * (pixels[..., 3] > 60)
    path = tmp_path / "squares.png"
    Image.fromarray(pixels).resize((301, 517), Image.Resampling.NEAREST).save(path)
    return [ROOT / "docs" / "photos" / "cat.png", path]


def shown_caption(page: Page) -> str:
    page.wait_for_selector("#announcement:not(:empty)", state="attached")
    return str(page.inner_text("#announcement")).removesuffix(".")


def light(page: Page) -> str:
    """What lies above the image, or nothing."""
    return str(page.locator("#light").evaluate("e => e.classList.contains('on') ? e.toDataURL() : ''"))


def test_the_page_says_what_python_says_and_shows_where_it_looked(
    chromium: Browser, url: str, captioner: OnnxCaptioner, processor: ShowAttendProcessor, images: list[Path]
) -> None:
    page = visit(chromium, url)
    requests: list[str] = []
    page.context.on("request", lambda request: requests.append(request.url))
    page.reload()
    page.wait_for_selector("#search", state="visible")
    assert page.locator("#progress").evaluate("e => e.value") == 1  # everything announced has arrived
    captions = []
    for num_beams in (1, BEAMS):
        for image in images:
            expected: Caption = captioner(image, num_beams=num_beams)
            page.select_option("#beams", str(num_beams))
            page.set_input_files("#file", image)
            assert shown_caption(page) == expected.text
            assert page.get_by_role("img", name=expected.text, exact=True).count() == 1
            attentions = expected.attentions.reshape(len(expected.token_ids), -1)
            words, grids = words_and_grids(processor, expected.token_ids, attentions, *expected.attentions.shape[1:])
            assert page.locator("#caption button").all_inner_texts() == words
            seen = page.locator("#caption button").evaluate_all("buttons => buttons.map((button) => button.grid)")
            np.testing.assert_allclose(np.array(seen).reshape(grids.shape), grids, atol=1e-4)
            captions.append(expected.text)
    assert len(set(captions)) > 2

    assert light(page) == ""
    lights = []
    for number in range(2):
        page.locator("#caption button").nth(number).hover()
        lights.append(light(page))
    page.mouse.move(5, 5)
    assert light(page) == "" and "" not in lights and lights[0] != lights[1]
    page.locator("#caption button").nth(1).focus()
    page.keyboard.press("Shift+Tab")
    for number in range(2):
        assert light(page) == lights[number]
        page.keyboard.press("Tab")
    assert len(requests) > 5 and [r for r in requests if not r.startswith((url, "data:", f"blob:{url}"))] == []
    page.context.close()


def test_a_phone_a_broken_file_a_drop_and_a_paste(
    chromium: Browser, url: str, captioner: OnnxCaptioner, images: list[Path], tmp_path: Path
) -> None:
    page = visit(chromium, url, viewport={"width": 360, "height": 740}, has_touch=True, color_scheme="dark")
    cut = tmp_path / "cut.png"
    cut.write_bytes(b"no photo")
    page.set_input_files("#file", cut)  # while the model loads
    page.get_by_role("alert").filter(has_text="cut.png is not a photo").wait_for()
    usual = captioner.settings["generation"]["num_beams"]
    for image, event in zip(images, ("drop", "paste"), strict=True):
        page.evaluate(
            """([event, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], "photo.png"));
                const Kind = event === "drop" ? DragEvent : ClipboardEvent;
                document.body.dispatchEvent(
                    new Kind(event, { bubbles: true, dataTransfer: data, clipboardData: data }));
            }""",
            [event, base64.b64encode(image.read_bytes()).decode()],
        )
        assert shown_caption(page) == captioner(image, num_beams=usual).text
        assert page.inner_text("#error") == ""
    page.locator("#caption button").nth(1).tap()
    assert light(page) != ""
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.context.close()


def png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def test_the_image_is_resized_as_by_pillow(chromium: Browser, url: str, captioner: OnnxCaptioner) -> None:
    page = visit(chromium, url)
    random = np.random.default_rng(0)

    def noise(height: int, width: int, channels: int = 3) -> Image.Image:
        return Image.fromarray(random.integers(0, 256, (height, width, channels), dtype=np.uint8))

    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    files = [noise(600, 301), noise(20, 33), noise(48, 64), noise(47, 200), noise(600, 301, 4)]
    encoded = [*map(png, files), png(noise(90, 30), exif=exif)]
    for (number, file), resample in product(enumerate(encoded), ("bilinear", "bicubic")):
        settings = {**captioner.settings["preprocessing"], "height": 48, "width": 64, "resample": resample}
        values = page.evaluate(
            """async ([file, settings]) => {
                const { preprocess } = await import("./preprocess.js");
                const bytes = Uint8Array.from(atob(file), (character) => character.charCodeAt(0));
                return [...await preprocess(new Blob([bytes]), settings)];
            }""",
            [base64.b64encode(file).decode(), settings],
        )
        expected = preprocess(read_image(file), settings)
        # Half-transparent pixels are blended with white in 8 bits, which Chromium and Pillow round differently.
        tolerance = 2 / 255 / min(settings["std"]) if number == 4 else 1e-6
        np.testing.assert_allclose(np.float32(values).reshape(expected.shape), expected, rtol=0, atol=tolerance)
    page.context.close()


def test_words_are_joined_as_in_python(chromium: Browser, url: str, captioner: OnnxCaptioner) -> None:
    vocabulary = ["[CLS]", "man", "'", "s", "surf", "##board", "t", "-", "shirt", ",", "/", "n't", "5", "é", ".", "##s"]
    settings = captioner.settings | {"vocabulary": vocabulary, "special_token_ids": [0]}
    random = np.random.default_rng(0)
    captions = [[0, 1, 2, 3, 4, 5, 9, 6, 7, 8, 0], *random.integers(0, len(vocabulary), (50, 8)).tolist()]
    page = visit(chromium, url)
    texts = page.evaluate(
        """async ([settings, captions]) => {
            const { OnnxCaptioner } = await import("./onnx_captioner.js");
            const captioner = new OnnxCaptioner(settings);
            return captions.map((tokenIds) => captioner.decode(tokenIds));
        }""",
        [settings, captions],
    )
    python = OnnxCaptioner(settings, None, None)
    assert texts == [python.decode(token_ids) for token_ids in captions]
    assert texts[0] == "man's surfboard, t-shirt"
    page.context.close()


class Machine:
    """Both sessions of a captioner whose predictions depend on one number that encodes all previous tokens."""

    STATES = 101

    def __init__(self, seed: int, vocab_size: int) -> None:
        random = np.random.default_rng(seed)
        self.logits = random.normal(0, 3, (self.STATES, vocab_size)).astype(np.float32)
        self.logits[:, 1] += 2  # [SEP], so that many captions end and searches stop early
        self.attentions = random.dirichlet(np.ones(4), self.STATES).astype(np.float32)

    def run(self, _: list[str], inputs: dict[str, Any]) -> list[Any]:
        if "pixel_values" in inputs:
            return [np.zeros((1, 1, 1), np.float32)] * 4
        states = (3 * inputs["c"][0, :, 0].astype(int) + inputs["input_ids"][0] + 1) % self.STATES
        state = states[None, :, None].astype(np.float32)
        return [self.logits[states][None], state, state, self.attentions[states][None]]


def test_the_searches_are_those_of_python(
    chromium: Browser, url: str, captioner: OnnxCaptioner, images: list[Path]
) -> None:
    vocabulary = ["[CLS]", "[SEP]", "a", "##b", "'", "c", "##d", "e", "[PAD]", "[UNK]", "[MASK]"]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)})
    processor = ShowAttendProcessor(ShowAttendImageProcessor(), tokenizer)
    page = visit(chromium, url)
    generated = []
    image = base64.b64encode(images[1].read_bytes()).decode()
    for seed in range(60):
        machine = Machine(seed, len(vocabulary))
        generation = {
            "decoder_start_token_id": 0,
            "eos_token_id": 1,
            "num_beams": 1 + seed % 4,
            "max_length": (3, 12, 30)[seed % 3],
            "length_penalty": (-1.0, 0.0, 0.5, 1.0, 3.0)[seed % 5],
            "no_repeat_ngram_size": (0, 1, 2, 3)[seed // 4 % 4],
        }
        settings = captioner.settings | {"vocabulary": vocabulary, "special_token_ids": [0, 1, 8, 9, 10]}
        settings |= {"generation": generation, "decoder_dim": 1}
        caption = page.evaluate(
            """async ([settings, logits, attentions, file]) => {
                const { OnnxCaptioner } = await import("./onnx_captioner.js");
                const one = { data: new Float32Array(1), dims: [1, 1, 1] };
                const encoder = { run: async () => ({ values: one, keys: one, h: one, c: one }) };
                const decoder = { run: async ({ input_ids, c }) => {
                    const next = (state, i) => (3 * state + Number(input_ids.data[i]) + 1) % logits.length;
                    const states = [...c.data].map(next);
                    const tensor = (of) => {
                        const rows = states.map(of);
                        return { data: Float32Array.from(rows.flat()), dims: [1, rows.length, rows[0].length] };
                    };
                    const state = tensor((state) => [state]);
                    const [scores, attention] = [logits, attentions].map((table) => tensor((state) => table[state]));
                    return { logits: scores, next_h: state, next_c: state, attention };
                } };
                const bytes = Uint8Array.from(atob(file), (character) => character.charCodeAt(0));
                return new OnnxCaptioner(settings, encoder, decoder).caption(new Blob([bytes]));
            }""",
            [settings, machine.logits.tolist(), machine.attentions.tolist(), image],
        )
        expected = OnnxCaptioner(settings, machine, machine)(images[1])
        assert caption["text"] == expected.text
        words, grids = words_and_grids(processor, expected.token_ids, expected.attentions, 2, 2)
        assert caption["words"] == words
        np.testing.assert_allclose(np.reshape(caption["grids"], grids.shape), grids, atol=1e-6)
        generated.append(expected.token_ids)
    assert len({len(token_ids) for token_ids in generated}) > 8 and {ids[-1] == 1 for ids in generated} == {True, False}
    page.context.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: (model / "encoder.float32.onnx").unlink(), "encoder.float32.onnx is missing on the server"),
        (lambda model: (model / "decoder.float32.onnx").write_bytes(b"no graph"), "its files are damaged"),
        (lambda model: (model / "captioner.json").write_text("{"), "captioner.json is damaged"),
        (lambda model: (model.parent / "worker.js").unlink(), "own files are incomplete"),
    ],
)
def test_a_missing_or_damaged_model_is_named(
    chromium: Browser, dist: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    shutil.copytree(dist, tmp_path / "dist")
    damage(tmp_path / "dist" / "model")
    with serving(tmp_path / "dist") as server:
        page = visit(chromium, f"http://127.0.0.1:{server.server_port}/")
        page.get_by_role("alert").filter(has_text=message).wait_for()
        assert not page.locator("#chooser").is_visible()
        page.set_input_files("#file", ROOT / "docs" / "photos" / "cat.png")  # as by a drop: waits for no model
        assert message in page.inner_text("#error") and page.inner_text("#caption") == ""
        page.context.close()
        server.shutdown()


def test_a_caption_without_words(chromium: Browser, dist: Path, images: list[Path], tmp_path: Path) -> None:
    shutil.copytree(dist, tmp_path / "dist")
    settings = json.loads((dist / "model" / "captioner.json").read_text())
    settings["special_token_ids"] = list(range(len(settings["vocabulary"])))
    (tmp_path / "dist" / "model" / "captioner.json").write_text(json.dumps(settings))
    with serving(tmp_path / "dist") as server:
        page = visit(chromium, f"http://127.0.0.1:{server.server_port}/")
        page.set_input_files("#file", images[0])
        assert shown_caption(page) == "The network generated no caption for this photo"
        assert page.locator("#caption button").count() == 0 and not page.locator("#hint").is_visible()
        page.context.close()
        server.shutdown()


def test_a_wrong_folder_or_precision_gives_one_sentence(captioner: OnnxCaptioner, dist: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([tmp_path / "none"], str(tmp_path / "none")),
        ([dist.parent / "onnx", "int8", tmp_path], "holds float32, not"),
    ):
        result = build(*arguments)
        assert result.returncode == 2 and result.stdout == ""
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and message in result.stderr
