"""The repository's captioner is complete, small, and works in a process without this package."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from tiny_flickr import ROOT

from showattend import DEFAULT_CHECKPOINT
from showattend.export.exported_files import exported_files

CAPTION = """
import sys
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

folder, image = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
caption = model.generate(**processor(images=image, return_tensors="pt"))
print(model.dtype, processor.decode(caption[0], skip_special_tokens=True), sep="\\n")
print(pipeline(model=folder, trust_remote_code=True)(image)[0]["generated_text"])
print(any(name.startswith("modeling_showattend.") for name in sys.modules))
"""


def test_fresh_process(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-I", "-c", CAPTION, str(DEFAULT_CHECKPOINT), str(ROOT / "docs" / "photos" / "dog.webp")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path)},
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    dtype, caption, from_pipeline, with_our_package = process.stdout.splitlines()
    assert dtype == "torch.float32" and with_our_package == "False"
    assert caption == from_pipeline
    assert caption.startswith("a ") and " dog " in caption and "grass" in caption and "[" not in caption


def test_light_and_complete() -> None:
    files = {
        path.relative_to(DEFAULT_CHECKPOINT): path.stat().st_size
        for path in DEFAULT_CHECKPOINT.rglob("*")
        if path.is_file() and "onnx" not in path.relative_to(DEFAULT_CHECKPOINT).parts
    }
    assert sum(files.values()) < 99_000_000
    with safe_open(DEFAULT_CHECKPOINT / "model.safetensors", "pt") as weights:
        dtypes = {weights.get_slice(name).get_dtype() for name in weights.keys() if "num_batches" not in name}  # noqa: SIM118
    assert dtypes == {"F16"}
    config = json.loads((DEFAULT_CHECKPOINT / "config.json").read_text())
    assert config["dtype"] == "float32" and config["vocab_size"] < 7000


@pytest.mark.parametrize("code", sorted(path.name for path in (ROOT / "modeling_showattend").glob("*_showattend.py")))
def test_code_is_the_packages(code: str) -> None:
    ours = (ROOT / "modeling_showattend" / code).read_text()
    assert (DEFAULT_CHECKPOINT / code).read_text() == ours, f"{code} in checkpoints/ is stale: make copy-code"


# --- its export ---


@pytest.fixture
def exported() -> list[Path]:
    files = exported_files(DEFAULT_CHECKPOINT)
    if not files:
        pytest.skip(f"{DEFAULT_CHECKPOINT}/onnx is not there yet: showattend export-onnx makes it")
    return files


def test_its_export_is_of_its_weights(exported: list[Path]) -> None:
    """`exported_files` refuses an export of other weights; this is about the rest of it."""
    assert sum(path.stat().st_size for path in exported) < 45_000_000
    [script] = [path for path in exported if path.name == "onnx_captioner.py"]
    assert script.read_text() == (ROOT / "showattend" / "export" / script.name).read_text()
    precisions = json.loads((DEFAULT_CHECKPOINT / "onnx" / "captioner.json").read_text())["files"]
    assert list(precisions) == ["int8"]


def test_its_export_captions_without_torch(exported: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    code = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'transformers', 'modeling_showattend', 'showattend']))\n"
        "del sys.argv[0]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script, image = DEFAULT_CHECKPOINT / "onnx" / "onnx_captioner.py", ROOT / "docs" / "photos" / "dog.webp"
    command = [sys.executable, "-c", code, str(script), str(image)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a ") and " dog " in done.stdout and "[" not in done.stdout
