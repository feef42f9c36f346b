"""The versions that the tests run with: lower bounds, tested ones, and those that moved."""

import re
import runpy
from importlib.metadata import version

from tiny_flickr import ROOT

VERSIONS = runpy.run_path(str(ROOT / "scripts" / "versions.py"))
PYPROJECT = (ROOT / "pyproject.toml").read_text()
CONSTRAINTS = (ROOT / "constraints.txt").read_text()


def test_every_library_has_a_lower_bound_and_a_tested_version() -> None:
    dependencies, extras = PYPROJECT.split("\ndependencies = [")[1].split("\ndev = [")[0].split("]", 1)
    libraries = re.findall(r'"([\w-]+)[^"]*"', dependencies + extras)
    assert {"torch", "transformers", "datasets", "gradio", "onnxruntime"} <= set(libraries)
    oldest = dict(line.split("==") for line in VERSIONS["oldest"](PYPROJECT))
    assert set(libraries) <= oldest.keys()
    tested = re.findall(r"^([\w-]+)==", CONSTRAINTS, flags=re.MULTILINE)
    assert set(libraries) <= set(tested)


def test_versions_that_moved_are_named() -> None:
    torch = version("torch").split("+")[0]
    numpy = f"numpy==0.1; python_version < '3'\nnumpy=={version('numpy')}; python_version >= '3'\n"
    assert VERSIONS["moved"](f"{numpy}torch==1.0\nnot-installed==2\n") == [f"torch 1.0 -> {torch}"]
