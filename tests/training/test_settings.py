import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_flickr import ROOT, environment
from transformers import get_scheduler
from transformers.trainer_utils import SchedulerType

from showattend.training.settings import METRICS, SCHEDULERS, TrainingSettings, parse_settings, settings_parser

CONFIGS = ROOT / "showattend" / "training" / "presets"
NEEDED = ["--dataset", "images", "--output-dir", "run"]


def parse(*arguments: str, presets: Path = CONFIGS) -> TrainingSettings:
    return parse_settings([*NEEDED, *arguments], presets)


def test_defaults() -> None:
    assert parse() == TrainingSettings("images", "run")


def test_hyphens_and_underscores() -> None:
    for arguments in (["--batch-size", "7"], ["--batch_size", "7"], ["--batch-size=7"], ["--batch_size=7"]):
        assert parse(*arguments).batch_size == 7
    assert parse_settings(["--dataset=images", "--output_dir=run"], CONFIGS) == TrainingSettings("images", "run")
    assert parse("--no-keep-final-stop").keep_final_stop is parse("--no_keep_final_stop").keep_final_stop is False


def test_every_setting_has_a_hyphenated_option() -> None:
    for setting in dataclasses.fields(TrainingSettings):
        if setting.default is not dataclasses.MISSING and setting.name != "preset" and setting.default is not None:
            settings = parse(f"--{setting.name.replace('_', '-')}={setting.default}")
            assert getattr(settings, setting.name) == setting.default


def test_help_names_the_defaults_that_there_are() -> None:
    text = " ".join(settings_parser().format_help().split())
    assert "(default: 32)" in text and "(default: False)" in text
    assert "(default: None)" not in text


def test_presets_of_the_project() -> None:
    original, tuned = parse("--preset", "original"), parse("--preset", "tuned")
    assert parse("--preset", "self_critical", "--init-from", "best").objective == "self_critical"
    # The write-up's settings are the defaults.
    assert dataclasses.replace(original, preset=None) == TrainingSettings("images", "run")
    assert (tuned.metric_for_best_model, tuned.context_gate, tuned.learning_rate) == ("cider", True, 8e-4)


def test_command_line_replaces_the_preset_and_that_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("batch_size: 9\nepochs: 3\nflip: true\nkeep_final_stop: false\n")
    for preset in ("mine", str(tmp_path / "mine.yaml")):
        settings = parse("--epochs", "4", "--preset", preset, "--keep-final-stop", "true", presets=tmp_path)
        assert (settings.batch_size, settings.epochs, settings.flip, settings.keep_final_stop) == (9, 4, True, True)
        assert settings.preset == preset
    assert parse("--preset=mine", "--no-keep-final-stop", presets=tmp_path).keep_final_stop is False


def test_preset_over_a_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("batch_size: 9\nepochs: 3\n")
    (tmp_path / "first.yaml").write_text("base: base.yaml\nepochs: 4\nflip: true\n")
    (tmp_path / "second.yaml").write_text("base: first.yaml\nflip: false\n")
    settings = parse("--preset", "second", presets=tmp_path)
    assert (settings.batch_size, settings.epochs, settings.flip) == (9, 4, False)
    (tmp_path / "orphan.yaml").write_text("base: nothing.yaml\n")
    with pytest.raises(ValueError, match=r"no preset .*nothing\.yaml: name one of base, first, orphan, second"):
        parse("--preset", "orphan", presets=tmp_path)


def test_preset_may_name_the_data(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text("dataset: here\noutput_dir: there\n")
    settings = parse_settings(["--preset", "all"], tmp_path)
    assert (settings.dataset, settings.output_dir) == ("here", "there")


def test_values_of_a_preset_are_read_as_on_the_command_line(tmp_path: Path) -> None:
    # YAML reads 3e-4 as a string, 1 as an integer, null as nothing and a bare `no` as false
    text = "learning_rate: 3e-4\nmax_grad_norm: 1\nearly_stopping_patience: null\nflip: yes\nmax_train_samples: 10\n"
    (tmp_path / "a.yaml").write_text(text)
    settings = parse("--preset", "a", presets=tmp_path)
    assert (settings.learning_rate, settings.max_grad_norm) == (3e-4, 1.0)
    assert isinstance(settings.max_grad_norm, float)
    assert (settings.early_stopping_patience, settings.flip, settings.max_train_samples) == (None, True, 10)
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert dataclasses.replace(parse("--preset", "empty", presets=tmp_path), preset=None) == TrainingSettings(
        "images", "run"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: fast", r"learning.rate: invalid float value: 'fast'\.$"),
        ("batch_size: 32.5", r"batch.size: invalid int value: '32.5'\.$"),
        ("epochs: [1, 2]", r"epochs: invalid int value"),
        ("flip: maybe", r"flip: .*maybe"),
        ("metric_for_best_model: blue", r"metric_for_best_model: invalid choice: 'blue'"),
        ("baseline: best", r"baseline: invalid choice: 'best'"),
        ("lerning_rate: 1\nbatchsize: 2", r"holds unknown settings: batchsize, lerning_rate\.$"),
        ("batch-size: 2", r"holds unknown settings: batch-size\.$"),
        ("3: 2", r"holds unknown settings: 3\.$"),
        ("batch_size 32", r"must hold lines like"),
        ("a: [", r"is not YAML"),
        ("- a", r"must hold lines like"),
    ],
)
def test_bad_preset(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"bad.yaml.*{message}") as error:
        parse("--preset", "bad", presets=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--preset", "orignal"],
            r"no preset .*/orignal.yaml: name one of .*original, .*tuned, or a YAML file",
        ),
        (["--preset", "nowhere/mine.yaml"], r"no preset nowhere/mine.yaml: name one of .*base, .*tuned"),
        (["--preset"], "--preset: expected one argument"),
        (["--batchsize", "3"], "^unknown arguments: --batchsize 3$"),
        (["--batch", "3"], "^unknown arguments: --batch 3$"),  # an abbreviation could become ambiguous
        (["--batch-size", "many"], "invalid int value: 'many'"),
        (["--metric-for-best-model", "blue"], "invalid choice: 'blue'"),
        (["--lr-scheduler", "cosin"], "invalid choice: 'cosin'"),
        (["--mixed-precision", "fp8"], "invalid choice: 'fp8'"),
        (["--batch-size", "0"], "--batch-size must be at least 1, not 0"),
        (["--samples-per-image", "0"], "--samples-per-image must be at least 1, not 0"),
        (["--early-stopping-patience", "0"], "--early-stopping-patience must be at least 1, not 0"),
        (["--learning-rate", "-1"], "--learning-rate must be at least 0, not -1.0"),
        (["--learning-rate", "nan"], "--learning-rate must be at least 0, not nan"),
        (["--plateau-factor", "1"], "--plateau-factor must be between 0 and 1"),
        (["--warmup-steps", "5"], "--lr-scheduler reduce_lr_on_plateau has no warm-up"),
        (["--warmup-steps", "5", "--lr-scheduler", "constant"], "--lr-scheduler constant has no warm-up"),
        (["--min-crop", "0"], "--min-crop must be above 0 and at most 1, not 0.0"),
        (["--min-crop", "0.8"], "--min-crop needs --finetune-last-stages"),
        (["--max-length", "2"], "--max-length must be at least 3"),
        (["--objective", "self_critical"], "name its start with --init-from"),
        (["--init-from", "best", "--encoder-name", "resnet18"], "--init-from and --encoder-name name two encoders"),
        (["--init-from", "best", "--encoder-weights", "x.pth"], "--init-from and --encoder-weights name two encoders"),
        (
            ["--init-from", "best", "--stride-in-1x1"],
            "--init-from and --stride-in-1x1 name two encoders: leave one out",
        ),
        (["--average-with-start", "0.5"], "--average-with-start needs a start: name it with --init-from"),
        (["--average-with-start", "1", "--init-from", "best"], "--average-with-start must be at least 0 and less"),
        (["--average-with", "best"], "--average-with needs a start: name it with --init-from"),
        (["--average-with-share", "1"], "--average-with-share must be at least 0 and less than 1"),
        (["--generated-captions", "2"], "--generated-captions needs a start: name it with --init-from"),
        (["--baseline", "samples", "--samples-per-image", "1"], "at least 2"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse(*arguments)
    assert "\n" not in str(error.value)


def test_missing_arguments() -> None:
    with pytest.raises(ValueError, match=r"required: .*output.dir"):
        parse_settings(["--dataset", "images"], CONFIGS)


def test_schedulers_need_no_settings_of_their_own() -> None:
    assert set(SCHEDULERS) <= {kind.value for kind in SchedulerType}
    for name in SCHEDULERS:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        get_scheduler(name, optimizer, num_warmup_steps=2, num_training_steps=10)


def test_metrics_can_be_chosen() -> None:
    for metric in METRICS:
        assert parse("--metric-for-best-model", metric).metric_for_best_model == metric


def test_script_says_one_sentence_and_exits_with_2() -> None:
    process = subprocess.run(
        [sys.executable, ROOT / "scripts" / "train.py", *NEEDED, "--learning-rate=fast"],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr == "error: argument --learning-rate: invalid float value: 'fast'\n"
