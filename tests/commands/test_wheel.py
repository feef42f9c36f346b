"""The wheel, installed where nothing else of this repository is visible: it is complete, and captions images."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_flickr import ROOT, draw, environment

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor

PACKAGES = ("modeling_showattend", "showattend")


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    return subprocess.run(list(map(str, command)), cwd=cwd, env=variables, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools writes beside the sources and picks up the leftovers of earlier builds."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder)
    built = run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=folder)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_file_of_both_packages(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.*")}
    assert packed == {name for name in ours if "__pycache__" not in name}
    for needed in ("modeling_showattend/py.typed", "showattend/py.typed", "showattend/training/presets/tuned.yaml"):
        assert needed in packed


def test_the_installed_wheel_captions(
    wheel: Path,
    make_model: Callable[..., ShowAttendForConditionalGeneration],
    processor: ShowAttendProcessor,
    tmp_path: Path,
) -> None:
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python, showattend = tmp_path / "env" / "bin" / "python", tmp_path / "env" / "bin" / "showattend"
    install = ("install", "--no-deps", "--no-index", wheel)
    installed = run(sys.executable, "-m", "pip", "--python", python, *install, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    # Dependencies are not downloaded: a .pth file names the folder of the tests' environment. .pth files in that folder
    # are not read, so an editable installation of this repository stays invisible.
    site = next((tmp_path / "env").rglob("site-packages"))
    (site / "libraries.pth").write_text("\n".join({sysconfig.get_path(kind) for kind in ("purelib", "platlib")}))

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    make_model().save_pretrained(elsewhere / "captioner")
    processor.save_pretrained(elsewhere / "captioner")
    (elsewhere / "photo.jpg").write_bytes(draw("green", "circle"))
    where = run(python, "-c", "import showattend; print(showattend.__file__)", cwd=elsewhere)
    assert where.stdout == f"{site}{os.sep}showattend{os.sep}__init__.py\n"

    captioned = run(showattend, "caption", "photo.jpg", "--checkpoint", "captioner", cwd=elsewhere)
    assert (captioned.returncode, captioned.stderr) == (0, "")
    assert captioned.stdout.strip()
    nameless = run(python, "-m", "modeling_showattend", "caption", "photo.jpg", cwd=elsewhere)
    assert nameless.returncode == 2
    assert nameless.stderr == "error: the following arguments are required: --checkpoint\n"
    presets = run(showattend, "train", "--dataset=d", "--output-dir=o", "--preset=none", cwd=elsewhere)
    assert presets.returncode == 2 and "tuned" in presets.stderr
