"""The captioner in ONNX: torch's captions and attentions, in a folder that runs where there is no torch."""

import importlib.util
import io
import json
import logging
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_flickr import ROOT, environment, make_folder
from transformers import BertTokenizer
from transformers.utils import logging as transformers_logging

from modeling_showattend import (
    ShowAttendForConditionalGeneration,
    ShowAttendImageProcessor,
    ShowAttendProcessor,
)
from modeling_showattend.modeling_showattend import generated_attentions
from showattend.checkpoints import load_captioner
from showattend.export.exported_files import exported_files
from showattend.export.onnx_captioner import OnnxCaptioner, preprocess, read_image
from showattend.hub.upload import files_to_share

if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]:
    pytest.skip(f"the export is tested with {', '.join(missing)}: pip install them", allow_module_level=True)

import onnx

from showattend.export import onnx_export

EXPORT, EVALUATE = ROOT / "scripts" / "export_onnx.py", ROOT / "scripts" / "evaluate_onnx.py"
PLAIN, GATED = "plain", "with a gate and deep output"
MAX_LENGTH, BEAMS, LENGTH_PENALTY = 9, 3, 1.5  # that the checkpoints come with
SEP = 3


class Done(NamedTuple):
    code: int | str | None
    out: str
    err: str


def run(script: Path, *arguments: object) -> Done:
    """Runs a script in this process."""
    code: int | str | None = 0
    given, sys.argv = sys.argv, [str(script), *map(str, arguments)]
    try:
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as exit:
        code = exit.code
    finally:
        sys.argv = given
        transformers_logging.enable_progress_bar()
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture
def images() -> list[Image.Image]:
    """Images of 4x4 squares, different enough for the network."""
    squares = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((90, 70), Image.Resampling.NEAREST) for pixels in squares]


@pytest.fixture
def export(
    make_model: Callable[..., ShowAttendForConditionalGeneration],
    processor: ShowAttendProcessor,
    images: list[Image.Image],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """Exports a captioner of random weights, once for all tests: a folder with `checkpoint`, `onnx` and `report`."""

    def export(name: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / name
        if not (folder / "report").exists():
            shutil.rmtree(folder, ignore_errors=True)
            gated: dict[str, Any] = {"seed": 3, "context_gate": True, "deep_output": True}
            model = make_model(**(gated if name == GATED else {"seed": 1}))
            settings = {"max_length": MAX_LENGTH, "num_beams": BEAMS, "length_penalty": LENGTH_PENALTY}
            if name == GATED:
                settings["no_repeat_ngram_size"] = 2
            model.generation_config.update(**settings)
            model.save_pretrained(folder / "checkpoint")
            processor.save_pretrained(folder / "checkpoint")
            (folder / "photos" / "more").mkdir(parents=True)
            for number, image in enumerate(images[:4]):
                image.save(folder / "photos" / ("more" if number % 2 else "") / f"{number}.png")
            (folder / "photos" / "broken.jpg").write_bytes(b"no photo")
            (folder / "photos" / "notes.txt").write_text("no photo")
            precisions = ["float32", "float16", "int8"] if name == PLAIN else ["float32"]
            arguments = ["--precision", *precisions, "--calibration", folder / "photos"]
            done = run(EXPORT, folder / "checkpoint", folder / "onnx", *arguments)
            assert done.code == 0, done
            (folder / "report").write_text(done.out)
        return folder

    return export


@pytest.fixture
def folder(export: Callable[[str], Path], tmp_path: Path) -> Path:
    """A separate copy of an exported captioner, to be damaged."""
    return shutil.copytree(export(PLAIN) / "onnx", tmp_path / "a copy")


def norm(difference: np.ndarray, values: np.ndarray) -> float:
    return float(np.linalg.norm(difference) / np.linalg.norm(values))


# --- what it says ---


@pytest.mark.parametrize("name", [PLAIN, GATED])
def test_captions_and_attentions_are_those_of_torch(
    name: str, export: Callable[[str], Path], images: list[Image.Image]
) -> None:
    model, processor = load_captioner(export(name) / "checkpoint")
    captioner = OnnxCaptioner.from_pretrained(export(name) / "onnx")
    inputs = processor(images=images, return_tensors="pt")
    searches: list[dict[str, Any]] = [
        {},  # as the checkpoint says: beams
        {"num_beams": 1},
        {"num_beams": BEAMS, "length_penalty": -1.0, "max_length": 20},
        {"num_beams": 8, "length_penalty": 0.0, "max_length": 6},
        {"num_beams": BEAMS, "max_length": 2},
        {"num_beams": 2, "length_penalty": 2.0, "max_length": 30},
    ]
    lengths, generated = set(), []
    for search in searches:
        outputs: Any = model.generate(**inputs, **search, return_dict_in_generate=True, output_attentions=True)
        attentions = generated_attentions(outputs)  # (images, tokens, positions)
        texts = processor.batch_decode(outputs.sequences, skip_special_tokens=True)
        for image, ids, looks, text in zip(images, outputs.sequences[:, 1:].tolist(), attentions, texts, strict=True):
            expected = ids[: ids.index(SEP) + 1] if SEP in ids else ids
            caption = captioner(image, **search)
            assert (caption.token_ids, caption.text) == (expected, text)
            assert caption.tokens == processor.tokenizer.convert_ids_to_tokens(expected)
            assert caption.attentions.shape == (len(expected), 2, 2)
            np.testing.assert_allclose(
                caption.attentions.reshape(len(expected), -1), looks[: len(expected)].numpy(), atol=1e-4
            )
            np.testing.assert_allclose(caption.attentions.sum(axis=(1, 2)), 1, atol=1e-5)
            assert np.ptp(caption.attentions) > 0.01
            lengths.add((len(expected), SEP in ids))
            generated.append(tuple(expected))
        batch = captioner.caption_batch(images, **search)
        assert [caption.token_ids for caption in batch] == [list(ids) for ids in generated[-len(images) :]]
        for caption, image in zip(batch, images, strict=True):
            np.testing.assert_allclose(caption.attentions, captioner(image, **search).attentions, atol=1e-5)
    # Random weights alone are too uniform for this test: it needs captions of many lengths, some cut and some not,
    # and the last search, which is to stop as early as torch's, would find better ones if it went on.
    assert len(set(generated)) > 20 and len(lengths) > 5 and {ended for _, ended in lengths} == {True, False}
    # Captions that must not repeat two tokens: without the setting they would.
    for search in searches[:2] if name == GATED else ():
        free = model.generate(**inputs, **search, no_repeat_ngram_size=0)
        repetitive = processor.batch_decode(free, skip_special_tokens=True)
        assert repetitive != [captioner(image, **search).text for image in images]
    patient = model.generate(**inputs, **searches[-1], early_stopping="never")
    assert name == PLAIN or processor.batch_decode(patient, skip_special_tokens=True) != texts


def test_the_folder_holds_its_files_and_no_trace_of_this_machine(export: Callable[[str], Path]) -> None:
    files = {file.name: file.read_bytes() for file in (export(PLAIN) / "onnx").iterdir()}
    settings = json.loads(files["captioner.json"])
    graphs = {name for names in settings["files"].values() for name in names.values()}
    assert len(graphs) == 6 and set(files) == graphs | {"captioner.json", "onnx_captioner.py"}
    assert files["onnx_captioner.py"] == (ROOT / "showattend" / "export" / "onnx_captioner.py").read_bytes()
    assert [
        name for name, content in files.items() if str(ROOT).encode() in content or b"site-packages" in content
    ] == []


@pytest.mark.parametrize("name", [PLAIN, GATED])
def test_each_weight_lies_in_one_graph(name: str, export: Callable[[str], Path]) -> None:
    exported = export(name)
    graphs = [onnx.load(exported / "onnx" / f"{part}.float32.onnx").graph for part in ("encoder", "decoder")]
    model, _ = load_captioner(exported / "checkpoint")
    whole = tuple(model.decoder.lstm_cell.weight_ih.shape)  # each graph reads a part of it
    assert whole not in [tuple(weight.dims) for graph in graphs for weight in graph.initializer]


def test_lower_precision_is_smaller_and_nearly_the_same(
    export: Callable[[str], Path], images: list[Image.Image]
) -> None:
    exported = export(PLAIN)
    model, processor = load_captioner(exported / "checkpoint")
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        values = model.decoder.project(model.encoder(pixel_values=pixel_values)[0]).numpy()
    sizes = {}
    for precision, least, most in (("float32", 0, 1e-4), ("float16", 1e-5, 1e-2), ("int8", 1e-3, 0.2)):
        captioner = OnnxCaptioner.from_pretrained(exported / "onnx", precision)
        (ours,) = captioner.encoder.run(["values"], {"pixel_values": pixel_values.numpy()})
        assert ours.dtype == np.float32 and least <= norm(ours - values, values) < most
        for num_beams in (1, BEAMS):
            caption = captioner(images[0], num_beams=num_beams)
            np.testing.assert_allclose(caption.attentions.sum(axis=(1, 2)), 1, atol=1e-5)
            assert caption.text == captioner.decode(caption.token_ids)
        files = [exported / "onnx" / f"{part}.{precision}.onnx" for part in ("encoder", "decoder")]
        sizes[precision] = sum(file.stat().st_size for file in files)
    assert sizes["float16"] < 0.55 * sizes["float32"] and sizes["int8"] < 0.3 * sizes["float32"]
    report = (exported / "report").read_text().splitlines()
    assert [line.split()[:2] for line in report[1:]] == [
        [precision, f"{size / 1e6:.1f}"] for precision, size in sizes.items()
    ]


@pytest.mark.parametrize("name", [PLAIN, GATED])
def test_any_number_of_images_and_of_their_captions(
    name: str, export: Callable[[str], Path], images: list[Image.Image]
) -> None:
    captioner = OnnxCaptioner.from_pretrained(export(name) / "onnx")
    settings = captioner.settings
    pixel_values = np.stack([preprocess(image, settings["preprocessing"]) for image in images[:5]])
    names = ["values", "keys", "h", "c"]
    encoded = captioner.encoder.run(names, {"pixel_values": pixel_values})
    for number in range(5):
        alone = captioner.encoder.run(names, {"pixel_values": pixel_values[number : number + 1]})
        for output, expected in zip(encoded, alone, strict=True):
            np.testing.assert_allclose(output[number : number + 1], expected, atol=1e-4)

    values, keys, _, _ = encoded
    random = np.random.default_rng(0)
    input_ids = random.integers(0, len(settings["vocabulary"]), (5, 4))
    state = random.normal(size=(2, 5, 4, settings["decoder_dim"])).astype(np.float32)

    def step(rows: slice, captions: slice) -> list[np.ndarray]:
        h, c = state[:, rows, captions]
        inputs = {"input_ids": input_ids[rows, captions], "h": h, "c": c}
        inputs |= {"values": values[rows], "keys": keys[rows]}
        results: list[np.ndarray] = captioner.decoder.run(["logits", "next_h", "next_c", "attention"], inputs)
        return results

    together = step(slice(5), slice(4))
    assert together[0].shape == (5, 4, len(settings["vocabulary"]))
    for rows, captions in ((slice(0, 1), slice(0, 1)), (slice(3, 4), slice(1, 4)), (slice(1, 5), slice(2, 3))):
        for output, expected in zip(step(rows, captions), together, strict=True):
            np.testing.assert_allclose(output, expected[rows, captions], atol=1e-4)


WORDS = ["man", "'", "s", "surf", "##board", "t", "-", "shirt", ",", "/", "n't", "'re", "5", "é", ".", "?", "!", "##s"]


def test_decoding_is_the_processors() -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "'mid", "n'tx", "##'", "_", "a.b", ".5", "##."]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)})
    processor = ShowAttendProcessor(ShowAttendImageProcessor(), tokenizer)
    captioner = OnnxCaptioner({"vocabulary": vocabulary, "special_token_ids": [0, 1, 2, 3, 4]}, None, None)
    tokens = ["[CLS]", "man", "'", "s", "surf", "##board", ",", "t", "-", "shirt", "[SEP]", "[PAD]"]
    ids = [vocabulary.index(token) for token in tokens]
    assert captioner.decode(ids) == processor.decode(ids, skip_special_tokens=True) == "man's surfboard, t-shirt"
    random = np.random.default_rng(0)
    for length in range(12):
        for ids in random.integers(0, len(vocabulary), (40, length)).tolist():
            assert captioner.decode(ids) == processor.decode(ids, skip_special_tokens=True)


# --- what it looks at ---


def files_of_every_kind() -> dict[str, bytes]:
    random = np.random.default_rng(0)

    def noise(*shape: int, dtype: Any = np.uint8) -> Image.Image:
        return Image.fromarray(random.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True))

    def written(image: Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    turned = Image.Exif()
    turned[0x0112] = 6  # by a quarter
    palette = noise(50, 70, 3).quantize(16)
    return {
        "colours": written(noise(300, 500, 3), "PNG"),
        "small": written(noise(20, 33, 3), "JPEG", quality=95),
        "the right size": written(noise(64, 64, 3), "WEBP", lossless=True),
        "palette": written(palette, "PNG"),
        "palette with a transparent colour": written(palette, "PNG", transparency=3),
        "alpha": written(noise(50, 70, 4), "PNG"),
        "grey": written(noise(50, 70), "PNG"),
        "grey with alpha": written(noise(50, 70, 2), "PNG"),
        "16 bits": written(noise(50, 70, dtype=np.uint16), "PNG"),
        "16 bits in TIFF": written(noise(50, 70, dtype=np.uint16), "TIFF"),
        "16 bits in PGM": written(noise(50, 70, dtype=np.uint16), "PPM"),
        "two colours": written(noise(50, 70).convert("1"), "PNG"),
        "CMYK": written(noise(50, 70, 3).convert("CMYK"), "JPEG"),
        "turned": written(noise(30, 90, 3), "JPEG", exif=turned),
        "turned, 16 bits": written(noise(30, 90, dtype=np.uint16), "PNG", exif=turned),
        "frames": written(palette, "GIF", save_all=True, append_images=[noise(50, 70, 3).quantize(16)]),
    }


def test_images_of_every_kind_are_those_of_the_processor(
    make_model: Callable[..., ShowAttendForConditionalGeneration], processor: ShowAttendProcessor, tmp_path: Path
) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"size": {"height": 48, "width": 80}, "resample": Image.Resampling.BICUBIC},
        {"do_normalize": False},
        {"image_mean": 0.4, "image_std": 0.3},
        {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 61.0, 62.0]},
    ]
    files: dict[str, Any] = files_of_every_kind()
    model = make_model()
    for variant in variants:
        images = ShowAttendImageProcessor(**{"size": {"height": 64, "width": 64}, **variant})
        settings = onnx_export._settings(model, ShowAttendProcessor(images, processor.tokenizer))["preprocessing"]
        assert len(settings["mean"]) == len(settings["std"]) == 3  # as the web page needs them
        seen = [preprocess(read_image(file), settings) for file in files.values()]
        expected = images(list(files.values()), return_tensors="np")["pixel_values"]
        for name, ours, theirs in zip(files, seen, expected, strict=True):
            assert ours.dtype == np.float32
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{name} {variant}")

    path = tmp_path / "turned.jpg"
    path.write_bytes(files["turned"])
    assert read_image(path).size == (30, 90)
    with path.open("rb") as open_file, Image.open(path) as image:
        for source in (path, str(path), files["turned"], bytearray(files["turned"]), open_file, image):
            assert read_image(source) == read_image(path)


# --- the folder by itself ---

ALONE = """
import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "transformers", "onnx", "modeling_showattend"]))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_folder_runs_where_there_is_no_torch(folder: Path, images: list[Image.Image], tmp_path: Path) -> None:
    images[0].save(tmp_path / "one.png")
    images[1].save(tmp_path / "two.png")
    script = str(folder / "onnx_captioner.py")
    command = [sys.executable, "-c", ALONE, script, "one.png", "two.png", "--precision=int8"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(PYTHONPATH=""), capture_output=True, text=True)
    captioner = OnnxCaptioner.from_pretrained(folder, precision="int8")
    one, two = (captioner(tmp_path / name).text for name in ("one.png", "two.png"))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"one.png\t{one}\ntwo.png\t{two}\n", "")
    assert one != two


def test_exit_codes_of_the_folders_script(folder: Path, images: list[Image.Image], tmp_path: Path) -> None:
    script = folder / "onnx_captioner.py"
    good, broken = tmp_path / "good.png", tmp_path / "broken.png"
    captioner = OnnxCaptioner.from_pretrained(folder)
    next(image for image in images if captioner(image).text != captioner(image, num_beams=1).text).save(good)
    broken.write_bytes(good.read_bytes()[:100])
    assert run(script, good) == (0, captioner(good).text + "\n", "")
    assert run(script, good, "--num-beams=1") == (0, captioner(good, num_beams=1).text + "\n", "")

    code, out, err = run(script, tmp_path / "none.png", broken, tmp_path, good)
    assert (code, out) == (1, f"{good}\t{captioner(good).text}\n")
    lines = err.splitlines()
    assert lines[0] == f"error: no such image file: {tmp_path}/none.png"
    assert lines[1].startswith(f"error: cannot read {broken}: ") and lines[2].startswith(
        f"error: cannot read {tmp_path}"
    )
    assert len(lines) == 3

    for arguments, message in (
        ([good, "--precision=int4"], f"{folder} holds float32, float16, int8, not the precision 'int4'."),
        ([good, f"--folder={tmp_path}"], f"{tmp_path} has no captioner.json, so it is not an exported captioner"),
        ([good, "--num-beams=0"], "--num-beams must be at least 1, not 0"),
        ([], "the following arguments are required: PHOTO"),
    ):
        code, out, err = run(script, *arguments)
        assert (code, out) == (2, "") and message in err and err.count("error: ") == 1


# --- mistakes ---


def one_sentence(kind: type[Exception], call: Callable[..., object], *arguments: object, **named: object) -> str:
    with pytest.raises(kind) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_an_intact_captioner(folder: Path, tmp_path: Path) -> None:
    def load(precision: str = "float32", at: Path = folder) -> str:
        return one_sentence(OSError, OnnxCaptioner.from_pretrained, at, precision)

    assert "has no captioner.json" in load(at=tmp_path / "none") and "run `showattend export-onnx`" in load(at=tmp_path)
    error = one_sentence(ValueError, OnnxCaptioner.from_pretrained, folder, "int4")
    assert error == f"{folder} holds float32, float16, int8, not the precision 'int4'."
    graph = folder / "encoder.float32.onnx"
    for content in (b"", b"no graph", graph.read_bytes()[:-1000]):
        graph.write_bytes(content)
        assert load() == f"{graph} is missing or damaged: export the captioner again."
    (folder / "decoder.int8.onnx").unlink()
    assert load("int8") == f"{folder}/decoder.int8.onnx is missing or damaged: export the captioner again."
    for text in ("", "{}", "[]", "{"):
        (folder / "captioner.json").write_text(text)
        assert load() == f"{folder}/captioner.json does not hold the settings of an exported captioner."


def test_a_wrong_image_or_number(export: Callable[[str], Path], images: list[Image.Image], tmp_path: Path) -> None:
    captioner = OnnxCaptioner.from_pretrained(export(PLAIN) / "onnx")
    (tmp_path / "notes.txt").write_text("no photo")
    for image, kind, message in (
        (tmp_path / "none.png", FileNotFoundError, f"no such image file: {tmp_path}/none.png"),
        (tmp_path / "notes.txt", OSError, f"cannot read {tmp_path}/notes.txt: it is empty or in no image format"),
        (tmp_path, OSError, f"cannot read {tmp_path}: Is a directory"),
        (b"", OSError, "cannot read the image: it is empty or in no image format"),
        (Image.new("F", (9, 9)), OSError, "32 bits"),
        (
            np.zeros((9, 9, 3)),
            ValueError,
            "an image must be a path, a URL, a PIL image, bytes or an open file, not ndarray",
        ),
    ):
        assert message in one_sentence(kind, captioner, image)
    for name, number, least in (
        ("num_beams", 0, 1),
        ("num_beams", 2.5, 1),
        ("num_beams", "3", 1),
        ("max_length", 1, 2),
    ):
        error = one_sentence(ValueError, captioner, images[0], **{name: number})
        assert error == f"`{name}` must be a whole number from {least}, not {number!r}."


def test_what_cannot_be_exported(export: Callable[[str], Path], tmp_path: Path) -> None:
    """One sentence, exit code 2, and an earlier export stays unchanged."""
    checkpoint, out = shutil.copytree(export(PLAIN) / "checkpoint", tmp_path / "checkpoint"), tmp_path / "out"
    out.mkdir()
    (out / "captioner.json").write_text("an earlier export")

    def refused(*arguments: object, checkpoint: Path = checkpoint) -> str:
        code, printed, err = run(EXPORT, checkpoint, out, *arguments)
        assert (code, printed) == (2, "") and [file.name for file in out.iterdir()] == ["captioner.json"]
        error = err.splitlines()[-1].removeprefix("export_onnx.py: ")
        assert error.startswith("error: ") and "Traceback" not in err
        return error.removeprefix("error: ")

    assert refused() == "int8 needs a folder of photos to calibrate on: name one with --calibration, or leave int8 out."
    for no_images in (tmp_path / "none", out):
        assert refused("--calibration", no_images) == f"--calibration {no_images} holds no photo to calibrate int8 on."
    assert "invalid choice: 'int4'" in refused("--precision", "int4")
    assert one_sentence(ValueError, onnx_export.export_onnx, checkpoint, out, ["int4"]) == (
        "The export supports the precisions float32, float16, int8, not 'int4'."
    )
    only = "--precision=float32"
    assert "There is no checkpoint folder" in refused(only, checkpoint=tmp_path / "none")

    generation = checkpoint / "generation_config.json"
    usual = json.loads(generation.read_text())
    for changes, message in (
        ({"repetition_penalty": 1.2}, "does not support the generation setting repetition_penalty"),
        (
            {"do_sample": True, "early_stopping": True},
            "support the generation setting do_sample, early_stopping",
        ),
        ({"eos_token_id": [3, 4]}, "needs one eos_token_id in the captioner's generation config"),
        ({"max_length": None}, "needs one max_length in the captioner's generation config"),
    ):
        generation.write_text(json.dumps(usual | changes))
        assert message in refused(only)
    generation.write_text(json.dumps(usual))

    preparation = checkpoint / "processor_config.json"
    settings = json.loads(preparation.read_text())
    cropped = settings["image_processor"] | {"do_center_crop": True}
    preparation.write_text(json.dumps(settings | {"image_processor": cropped}))
    assert "resized to a height and a width, not cropped ones" in refused(only)
    preparation.write_text(json.dumps(settings))

    tokenizer = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "dog": 5})
    tokenizer.save_pretrained(checkpoint)
    assert refused(only) == "The tokenizer has 6 tokens, the network 24."


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces tracing, which takes seconds, by the float32 graphs of an export."""

    def put(folder: Path, change: Callable[[onnx.ModelProto], None] = lambda decoder: None) -> None:
        encoder, decoder = (onnx.load(folder / "onnx" / f"{part}.float32.onnx") for part in ("encoder", "decoder"))
        change(decoder)
        monkeypatch.setattr(onnx_export, "_encoder_graph", lambda *_: encoder)
        monkeypatch.setattr(onnx_export, "_decoder_graph", lambda *_: decoder)

    return put


def test_a_graph_that_is_not_torchs_is_not_written(
    export: Callable[[str], Path], traced: Callable[..., None], tmp_path: Path
) -> None:
    def refused(value: float) -> str:
        def spoil(decoder: onnx.ModelProto) -> None:
            weight = next(weight for weight in decoder.graph.initializer if weight.name == "decoder.embedding.weight")
            values = onnx.numpy_helper.to_array(weight) * np.float32(value)
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))

        traced(export(GATED), spoil)
        checkpoint, out = export(GATED) / "checkpoint", tmp_path / "out"
        error = one_sentence(ValueError, onnx_export.export_onnx, checkpoint, out, ["float32"])
        assert not out.exists()
        return error

    error = refused(1.01)
    assert re.match(
        r"The float32 graphs differ from torch's logits by \d\.\de-0[123] of their size, more than 1e-04", error
    )
    # As from weights that overflow float16.
    assert "differ from torch's logits by nan of their size" in refused(float("nan"))


def test_an_export_replaces_the_one_before(
    export: Callable[[str], Path], traced: Callable[..., None], folder: Path, images: list[Image.Image]
) -> None:
    """Files of precisions that are no longer exported are removed; other files in the folder stay."""
    (folder / "notes.txt").write_text("mine")
    (folder / "captioner.json").write_text("damaged")
    traced(export(GATED))
    code, out, err = run(EXPORT, export(GATED) / "checkpoint", folder, "--precision=float16")
    assert (code, err) == (0, "") and out.splitlines()[1].startswith("float16 ")
    names = {"captioner.json", "onnx_captioner.py", "encoder.float16.onnx", "decoder.float16.onnx", "notes.txt"}
    assert {file.name for file in folder.iterdir()} == names
    assert OnnxCaptioner.from_pretrained(folder, "float16")(images[0]).token_ids
    code, _, err = run(EXPORT, export(GATED) / "checkpoint", folder / "notes.txt", "--precision=float16")
    assert (code, err) == (2, f"error: {folder}/notes.txt cannot be written: File exists.\n")


def test_a_checkpoint_carries_the_export_of_its_own_weights(
    export: Callable[[str], Path], traced: Callable[..., None], tmp_path: Path
) -> None:
    traced(export(GATED))
    checkpoint = shutil.copytree(export(GATED) / "checkpoint", tmp_path / "checkpoint")
    assert exported_files(checkpoint) == []
    code, _, err = run(EXPORT, checkpoint, "--precision=float16")
    assert (code, err) == (0, "")
    names = {"captioner.json", "onnx_captioner.py", "encoder.float16.onnx", "decoder.float16.onnx"}
    assert {path.relative_to(checkpoint / "onnx").as_posix() for path in exported_files(checkpoint)} == names
    assert {f"onnx/{name}" for name in names} <= set(files_to_share(checkpoint, "me/captioner"))

    graph = checkpoint / "onnx" / "decoder.float16.onnx"
    graph.rename(tmp_path / graph.name)
    assert "onnx has no decoder.float16.onnx: run" in one_sentence(ValueError, exported_files, checkpoint)
    (tmp_path / graph.name).rename(graph)
    weights = load_file(checkpoint / "model.safetensors")
    weights["decoder.fcn.bias"][0] += 1
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    for refuse in (exported_files, partial(files_to_share, repo_id="me/captioner")):
        error = one_sentence(ValueError, refuse, checkpoint)
        assert error.startswith(f"{checkpoint}/onnx was exported from other weights than {checkpoint} holds: run")
    (checkpoint / "onnx" / "captioner.json").write_text("{}")
    assert "does not hold the settings of an export" in one_sentence(OSError, exported_files, checkpoint)
    code, _, err = run(EXPORT, "me/captioner", "--precision=float16")
    assert code == 2 and "name the folder OUT to write" in err


def test_images_that_cannot_be_read_calibrate_nothing(
    export: Callable[[str], Path], images: list[Image.Image], caplog: pytest.LogCaptureFixture
) -> None:
    exported = export(PLAIN)
    preprocessing = OnnxCaptioner.from_pretrained(exported / "onnx").settings["preprocessing"]
    with caplog.at_level(logging.WARNING):
        calibration = onnx_export._calibration_images(exported / "photos", preprocessing)
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot read {exported}/photos/broken.jpg: it is empty or in no image format that Pillow knows; "
        "it is left out of the calibration"
    ]
    expected = [preprocess(images[number], preprocessing) for number in (0, 2, 1, 3)]  # in the order of their paths
    np.testing.assert_array_equal(calibration, expected)


# --- measurement ---


def test_evaluation_script(export: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_folder(tmp_path) / "photos"
    monkeypatch.setenv("PATH", environment()["PATH"])  # no Java
    exported = export(PLAIN)
    arguments = [exported / "onnx", "--dataset", dataset, "--checkpoint", exported / "checkpoint"]
    code, out, _ = run(EVALUATE, *arguments, "--precision", "float32", "int8")
    assert code == 0
    table, *reports = out.split("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    header, figures = rows[0], {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}
    assert {"megabytes", "milliseconds", "bleu_4", "cider", "as_torch"} < set(header)
    assert list(figures) == ["torch", "float32", "int8"]
    assert figures["torch"]["as_torch"] == figures["float32"]["as_torch"] == "100.0"
    assert figures["torch"]["cider"] == figures["float32"]["cider"]
    assert 3 * float(figures["int8"]["megabytes"]) < float(figures["float32"]["megabytes"])
    assert [report.splitlines()[0] for report in reports] == [
        "torch: 2 images, 95 % bootstrap intervals",
        "float32: 2 images, 95 % bootstrap intervals, differences to torch",
        "int8: 2 images, 95 % bootstrap intervals, differences to torch",
    ]
    assert all(f"\ncider    {figures['torch']['cider']:>6}  [" in report for report in reports[:2])
    assert "  +0.0 [+0.0, +0.0], equal\n" in reports[1]

    # Without --precision, what the folder holds.
    int8_only = tmp_path / "int8"
    shutil.copytree(exported / "onnx", int8_only)
    settings = json.loads((int8_only / "captioner.json").read_text())
    settings["files"] = {"int8": settings["files"]["int8"]}
    (int8_only / "captioner.json").write_text(json.dumps(settings))
    code, out, _ = run(EVALUATE, int8_only, "--dataset", dataset)
    assert code == 0 and [line.split("|")[1].strip() for line in out.split("\n\n")[0].splitlines()[2:]] == ["int8"]

    for wrong, message in (
        (["--precision=int4"], "not the precision 'int4'"),
        (["--num-beams=0"], "--num-beams: '0' is not a whole number from 1"),
    ):
        code, out, err = run(EVALUATE, *arguments, *wrong)
        assert (code, out) == (2, "") and message in err.splitlines()[-1]
