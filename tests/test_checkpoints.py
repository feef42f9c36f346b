"""Loading a captioner: every damage to its folder is one OSError that says what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeling_showattend import ShowAttendForConditionalGeneration
from showattend.checkpoints import load_captioner


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# One damage for each type that from_pretrained raises.
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "OSError": (lambda folder: (folder / "config.json").write_bytes(b"{"), "not a valid JSON file"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    "SafetensorError": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"),
        "header",
    ),
    "JSONDecodeError": (lambda folder: (folder / "tokenizer.json").write_text("<html>"), "Expecting value"),
    "UnicodeDecodeError": (lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\xfe"), "can't decode byte"),
    "Exception": (lambda folder: edit(folder / "tokenizer.json", version=3), "invalid type: integer"),
    "KeyError": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "added_tokens"),
    "TypeError": (lambda folder: (folder / "config.json").write_text("[]"), "list"),
    "AttributeError": (lambda folder: (folder / "processor_config.json").write_text("[]"), "has no attribute"),
    "IndexError": (lambda folder: edit(folder / "config.json", dtype=[]), "list index out of range"),
    "ValueError": (lambda folder: edit(folder / "config.json", dropout=-3), "dropout=-3 must be"),
    "mismatched weights": (
        lambda folder: edit(folder / "config.json", attention_dim=9),
        r"weights are not those of its config, which differ in decoder\.attention",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_error(damage: str, checkpoint: Path) -> None:
    damaging, message = DAMAGES[damage]
    damaging(checkpoint)
    with pytest.raises(OSError, match=rf"captioner holds no captioner that can be loaded: .*{message}") as error:
        load_captioner(checkpoint)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"word_dropout": 1.5}, r"^word_dropout=1\.5 must be at least 0 and less than 1\.$"),
        ({"finetune_last_stages": 9}, r"^finetune_last_stages=9 is not one of 0"),
        ({"attention_type": "soft"}, "^likeliest_position=True needs attention_type='hard'"),
    ],
)
def test_changes_of_the_config_are_checked(checkpoint: Path, changes: dict[str, Any], message: str) -> None:
    edit(checkpoint / "config.json", attention_type="hard", likeliest_position=True)
    with pytest.raises(ValueError, match=message):
        load_captioner(checkpoint, **changes)


def test_faults_of_code_pass_through(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a fault of the library")

    monkeypatch.setattr(ShowAttendForConditionalGeneration, "from_pretrained", fail)
    with pytest.raises(AssertionError, match="a fault of the library"):
        load_captioner(checkpoint)


def test_nobody_is_asked_to_trust_the_folder(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions: list[object] = []

    def answer(question: object = None) -> str:
        questions.append(question)
        return "n"

    monkeypatch.setattr("builtins.input", answer)
    edit(checkpoint / "config.json", model_type="unknown")
    load_captioner(checkpoint)
    assert not questions
