"""The command `showattend`: its subcommands, and what they share."""

import argparse
import errno
import pkgutil
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from tiny_flickr import ROOT, environment

from showattend import commands
from showattend.__main__ import COMMANDS, main
from showattend.command_line import EXTRAS, CommandParser, add_search, given, number, whole_number

HELP = """
import sys
from showattend.__main__ import COMMANDS, main
for name in COMMANDS:
    try:
        main([name, "--help"])
    except SystemExit as exit:
        assert not exit.code, name
    heavy = {"torch", "torchvision", "gradio", "datasets", "accelerate"} & sys.modules.keys()
    assert not heavy, (name, heavy)
"""


WITHOUT_LIBRARIES = """
import sys
from showattend.__main__ import COMMANDS, main
data = ["--dataset=d", "--output-dir=o"]
arguments = {
    "caption": ["x", "--checkpoint=c"], "caption-dataset": ["a", "b", "--checkpoint=c"], "train": data,
    "evaluate": [*data, "--checkpoint=c"], "app": ["--checkpoint=c"], "visualize-attention": ["x", "--checkpoint=c"],
    "evaluate-attention": [*data, "--checkpoint=c"], "export-onnx": ["a", "b"], "evaluate-onnx": ["a", "--dataset=d"],
    "push-to-hub": ["a", "b/c"], "pack-checkpoint": ["a", "b"], "average-checkpoints": ["a", "b", "c", "0.5"],
    "prune-tokenizer": data, "convert-original": ["a", "b"], "fetch-original-resnet50": ["a"],
    "fetch-efficientnet-lite0": ["a"],
}
for name in COMMANDS:
    try:
        main([name, *arguments[name]])
    except SystemExit as exit:
        assert exit.code == 2, name
"""


def test_every_module_is_a_subcommand_and_a_script() -> None:
    modules = {module.name for module in pkgutil.iter_modules(commands.__path__)}
    assert {name.replace("-", "_") for name in COMMANDS} == modules
    for name in modules:
        assert f"from showattend.commands.{name} import main" in (ROOT / "scripts" / f"{name}.py").read_text()


def test_help_waits_for_no_heavy_library() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(COMMANDS)


def test_a_missing_library_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-c", WITHOUT_LIBRARIES]  # -S: without site-packages
    done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(COMMANDS)
    assert all(re.match(r"error: \w+ is not installed: pip install -e .* in a clone; ", line) for line in lines)


@pytest.mark.parametrize("package", ["showattend", "modeling_showattend"])
def test_both_packages_run_as_modules(package: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", package, *arguments]
        return subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True)

    listing = run("--help")
    assert listing.returncode == 0 and all(name in listing.stdout for name in COMMANDS)
    wrong = run("caption", "photo.jpg", "--num_beams=0")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: argument --num-beams: '0' is not a whole number from 1\n"


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["capton"])
    assert stop.value.code == 2
    assert "'capton'" in capsys.readouterr().err


def test_underscores_are_hyphens() -> None:
    parser = CommandParser("test", "")
    add_search(parser)
    parser.add_argument("--prefix")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args(["--num_beams=3", "--max-length", "9", "--prefix=a_b", "--", "c_d.jpg", "--e_f.jpg"])
    assert given(options, "num_beams", "length_penalty", "max_length") == {"num_beams": 3, "max_length": 9}
    assert (options.prefix, options.names) == ("a_b", ["c_d.jpg", "--e_f.jpg"])


@pytest.mark.parametrize("argument", [["--captions="], ["--captions", ""], ["--dataset", ""], ["--output_dir="]])
def test_an_empty_argument_is_refused(argument: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It comes from a shell variable that is not set, and would stand for the current folder."""
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--dataset=d", "--output-dir=o", *argument])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: an argument is empty\n"


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (
            ValueError("`num_beams` must be at least 1; `other` is no option"),
            2,
            "--num-beams must be at least 1; `other`",
        ),
        (
            ImportError("\nX requires timm. Install it:\n`pip install timm`.\n"),
            1,
            "error: X requires timm. Install it: `pip",
        ),
        (OSError("There is no folder x."), 1, "error: There is no folder x."),
        (PermissionError(13, "Permission denied", "out.csv"), 1, "error: out.csv: Permission denied"),
        (
            ModuleNotFoundError("No module named 'gradio'", name="gradio"),
            2,
            'error: gradio is not installed: pip install -e ".[app]" in a clone; the extra [app] of ',
        ),
    ],
)
def test_errors_are_one_line(error: Exception, exit_code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser("test", "")
    add_search(parser)
    with pytest.raises(SystemExit) as stop, parser.reporting(exit_code):
        raise error
    assert stop.value.code == exit_code
    written = capsys.readouterr()
    assert written.out == "" and line in written.err and written.err.count("\n") == 1


def test_the_extra_of_every_library_is_known() -> None:
    extras = re.findall(r"^(\w+) = \[(.*?)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    for extra, libraries in extras:
        if extra in ("train", "app", "onnx", "ray", "timm"):
            for library in re.findall(r'"(\w+)', libraries):
                assert EXTRAS[{"pyyaml": "yaml"}.get(library, library)] == extra
    assert {"train", "app", "onnx", "ray", "timm"} <= {extra for extra, _ in extras}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_fails_the_run(wrapped: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever code the block asks for: nothing that the user gave is wrong."""
    full = OSError(errno.ENOSPC, "No space left on device", "figures.json")
    with pytest.raises(SystemExit) as stop, CommandParser("test", "").reporting(2):
        if wrapped:
            raise OSError("onnx cannot be written: No space left on device.") from full
        raise full
    assert stop.value.code == 1
    assert "No space left on device" in capsys.readouterr().err


def run_script(arguments: list[str]) -> None:
    runpy.run_path(str(ROOT / "scripts" / f"{arguments[0]}.py"), run_name="__main__")


@pytest.mark.parametrize("start", [main, run_script])
def test_an_interrupted_command(
    start: Callable[[list[str]], object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a subcommand and as a script alike: an exit code, and no traceback."""

    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    arguments = ["evaluate", "--checkpoint=c", "--dataset=d", "--output-dir=o"]
    monkeypatch.setitem(sys.modules, "showattend.evaluation.scoring", Interrupted("scoring"))
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        start(arguments)
    assert stop.value.code == 130
    assert capsys.readouterr() == ("", "")


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(KeyError), CommandParser("test", "").reporting(2):
        raise KeyError("ours")


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "one", "", "nan"])
def test_numbers_that_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number from 1"):
        whole_number(1)(text)
    with pytest.raises(argparse.ArgumentTypeError, match="'9999999999' is too large"):
        whole_number(1)("9999999999")
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number from 2 to 3"):
        number(2, 3)(text)
