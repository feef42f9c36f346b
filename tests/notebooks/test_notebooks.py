"""The notebooks run from a clone, and their stored outputs are what they produce."""

import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from tiny_flickr import ROOT

NOTEBOOKS = ROOT / "notebooks"


def read(name: str) -> Any:
    return nbformat.read(NOTEBOOKS / name, as_version=4)


def printed(notebook: Any) -> str:
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    return "".join(out.text for cell in cells for out in cell.outputs if out.get("name") == "stdout")


def executed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the notebook prints when it is run from its own folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))  # no Java, which takes long for METEOR alone
    notebook = read(name)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    return printed(notebook)


@pytest.mark.parametrize("name", ["show_attend_and_tell.ipynb", "train_on_two_gpus.ipynb"])
def test_outputs_are_kept_and_small(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [out for cell in code for out in cell.outputs]
    assert outputs and not any(out.output_type == "error" or out.get("name") == "stderr" for out in outputs)
    assert (NOTEBOOKS / name).stat().st_size < 400_000


def test_the_tour_ends_with_four_memorised_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = executed("show_attend_and_tell.ipynb", tmp_path, monkeypatch)
    name = "show_attend_and_tell.ipynb"
    captions = [line for line in printed(read(name)).splitlines() if line.split(" ")[0].endswith((".webp", ".png"))]
    assert len(captions) == 8 and captions[4].endswith("a german shepherd stands in the dry grass")
    assert output.splitlines()[-4:] == captions[4:]


@pytest.mark.skipif(sys.platform == "win32", reason="notebook_launcher forks")
def test_two_processes_train_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = executed("train_on_two_gpus.ipynb", tmp_path, monkeypatch)
    assert "processes: 2" in output and "'epoch': 2" in output
    assert sorted(path.name for path in next(tmp_path.glob("*/run")).iterdir()) >= ["best", "checkpoint"]
