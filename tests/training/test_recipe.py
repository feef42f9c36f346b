"""The recipe of the checkpoint on a small scale: its presets in the Makefile's order."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_flickr import ROOT, command_line, forget_process

from showattend.training import trainer
from showattend.training.settings import parse_settings
from showattend.training.trainer import Trainer, train

pytestmark = pytest.mark.usefixtures("no_java")

# What tests give every run and the presets are to decide here.
OF_PRESET = dict.fromkeys(("embed_size", "attention_dim", "decoder_dim", "batch_size", "epochs"))


class Killed(BaseException):
    """As close to a kill as an exception gets: nothing catches it."""


def phases_of_the_makefile() -> list[tuple[str, str]]:
    """Each phase's preset, and the number of the phase that it averages with, if any."""
    phase = r'\$\(TRAIN\) --preset (\w+)(?:.*--average-with "\$\(RUNS\)/(\d)/best")?'
    return re.findall(phase, (ROOT / "Makefile").read_text())


def run_recipe(folder: Path, runs: Path) -> str:
    """All phases; the digest of the last one's weights."""
    start = None
    for number, (preset, average_with) in enumerate(phases_of_the_makefile(), start=1):
        small: dict[str, Any] = dict(preset=preset, checkpoint_every=3, epochs=1, batch_size=16, seed=number)
        if start is not None:
            small |= dict(init_from=start, tokenizer=None)
        if average_with:
            small["average_with"] = runs / average_with / "best"
        arguments = command_line(folder, runs / str(number), **OF_PRESET | small)
        forget_process()
        start = train(parse_settings(arguments))
    assert start is not None
    return hashlib.sha256((start / "model.safetensors").read_bytes()).hexdigest()


def test_recipe_gives_the_same_files_however_often_it_is_interrupted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [phase[1] for phase in phases_of_the_makefile()] == ["", "", "", "", "2"]
    unbroken = run_recipe(folder, tmp_path / "unbroken")

    def dying(original: Any) -> Any:
        calls = []

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            if len(calls) in (2, 9):
                raise Killed
            return original(*args, **kwargs)

        return call

    for method in ("train_step", "validate", "save_checkpoint", "load_data", "keep_best"):
        monkeypatch.setattr(Trainer, method, dying(getattr(Trainer, method)))
    monkeypatch.setattr(trainer, "best_captions", dying(trainer.best_captions))
    deaths = 0
    while True:
        try:
            broken = run_recipe(folder, tmp_path / "broken")
        except Killed:
            deaths += 1
        else:
            break
    assert deaths >= 6
    assert broken == unbroken
    for phase in sorted((tmp_path / "unbroken").iterdir()):
        assert (tmp_path / "broken" / phase.name / "log.jsonl").read_text() == (phase / "log.jsonl").read_text()
