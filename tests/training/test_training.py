import errno
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_flickr import ROOT, command_line, environment, forget_process, read_log, training_settings
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from transformers import AutoModelForImageTextToText, AutoProcessor

import showattend.training.trainer as training
from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from showattend.data.captions import load_split
from showattend.folders import recover, replacing
from showattend.metrics.ptb import find_java
from showattend.training import objectives
from showattend.training.self_critical import policy_gradient_loss, sample_captions

pytestmark = pytest.mark.usefixtures("no_java")  # one run below has it

TRAIN = [sys.executable, str(ROOT / "scripts" / "train.py")]
CAPTION_SCORES = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"]


def train(folder: Path, output: Path, **changes: Any) -> list[dict[str, float]]:
    """Train in this process, and return the log."""
    forget_process()
    try:
        assert training.train(training_settings(folder, output, **changes)) == output / "best"
    finally:
        forget_process()
    return read_log(output)


def last_weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoint" / "model.safetensors")


def run(command: list[str], **changes: str) -> str:
    process = subprocess.run(command, capture_output=True, text=True, env=environment(**changes), timeout=300)
    assert process.returncode == 0, process.stderr
    return process.stdout


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- the script, from end to end ---

ORIGINAL = dict(preset="original", epochs=2, dropout=None, checkpoint_every=2, ema_decay=0.5)


@pytest.fixture(scope="module")
def original(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of the write-up's recipe, on a small scale."""
    output = tmp_path_factory.mktemp("original") / "run"
    stdout = run([*TRAIN, *command_line(folder, output, report_to="tensorboard", **ORIGINAL)])
    assert stdout.splitlines()[-1] == f"The best model is in {output / 'best'}."
    assert stdout.startswith("epoch 1, ") and "\nepoch 2, " in stdout
    return output


def captions_with_auto_classes(best: Path, folder: Path) -> str:
    model: Any = AutoModelForImageTextToText.from_pretrained(best)
    processor = AutoProcessor.from_pretrained(best)
    assert isinstance(processor, ShowAttendProcessor)
    image = Image.open(folder / "photos" / "Images" / "red_circle.jpg")
    generated = model.generate(**processor(image, return_tensors="pt"), min_length=6, do_sample=False)
    return processor.decode(generated[0], skip_special_tokens=True)


def test_script(original: Path, folder: Path) -> None:
    assert captions_with_auto_classes(original / "best", folder)
    log = read_log(original)
    assert [line["epoch"] for line in log] == [1, 2]
    for line in log:
        expected = ["epoch", "learning_rate", "train_loss", "loss", "token_accuracy", *CAPTION_SCORES]
        assert list(line) == expected  # without METEOR: there is no Java on the path
        assert all(math.isfinite(value) for value in line.values())
        assert 0 <= line["token_accuracy"] <= 1 and line["learning_rate"] == 3e-4
    assert log[1]["train_loss"] < log[0]["train_loss"]
    assert Image.open(original / "curves.png").size[0] > 500
    assert sorted(path.name for path in (original / "samples").iterdir()) == ["epoch-001.png", "epoch-002.png"]
    assert Image.open(original / "samples" / "epoch-002.png").size[0] > 500
    assert list(original.rglob("events.out.tfevents.*"))
    assert json.loads((original / "settings.json").read_text())["dropout"] == 0.5
    assert {path.name for path in original.iterdir()} == {
        *("best", "checkpoint", "log.jsonl", "curves.png", "samples", "settings.json", "showattend")
    }


def test_tuned_preset(folder: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([environment()["PATH"], os.defpath])
    output = tmp_path / "run"
    small = dict(batch_size=8, flip=True, gradient_accumulation_steps=2, num_workers=1)
    run([*TRAIN, *command_line(folder, output, preset="tuned", **small)], PATH=path)
    (line,) = read_log(output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        assert ("meteor" in line) == bool(find_java())
    assert set(CAPTION_SCORES) <= line.keys()
    caption = captions_with_auto_classes(output / "best", folder)
    model = ShowAttendForConditionalGeneration.from_pretrained(output / "best")
    assert model.config.context_gate and model.dtype == torch.float32
    vocabulary = (folder / "vocab.txt").read_text().split()
    assert model.config.vocab_size == len(vocabulary) - 1  # pruned of the one word that no caption has
    assert "." not in caption


# --- interruptions ---


def kill_in_the_middle_of_an_epoch(command: list[str], output: Path) -> bool:
    """Start a run and kill it without warning; return whether it had a checkpoint within an epoch by then."""
    progress = output / "checkpoint" / "progress.json"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()) as process:
        while not progress.exists():
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    if not progress.exists():  # in the moment between two renames
        return True
    return 0 < json.loads(progress.read_text())["step"] < 8


def test_killed_run_ends_as_an_uninterrupted_one(original: Path, folder: Path, tmp_path: Path) -> None:
    for attempt in range(3):  # a very slow observer may find that an epoch has ended
        output = tmp_path / f"run-{attempt}"
        command = [*TRAIN, *command_line(folder, output, **ORIGINAL)]
        if kill_in_the_middle_of_an_epoch(command, output):
            break
    else:
        pytest.fail("the run could not be killed within an epoch")
    run(command)
    broken, unbroken = last_weights(output), last_weights(original)
    assert broken.keys() == unbroken.keys()
    assert all(torch.equal(broken[name], unbroken[name]) for name in unbroken)
    assert read_log(output) == read_log(original)
    assert digests(output / "best") == digests(original / "best")


@pytest.mark.parametrize(
    ("found", "left"),
    [
        ({}, None),
        ({"x.new": "half"}, None),  # killed in the first save
        ({"x": "old", "x.new": "half"}, "old"),
        ({"x.old": "old", "x.new": "new"}, "old"),  # between the renames
        ({"x": "new", "x.old": "old"}, "new"),  # after them
        ({"x": "new", "x.old": "half gone", "x.new": "half"}, "new"),
    ],
)
def test_recovery_of_a_killed_save(tmp_path: Path, found: dict[str, str], left: str | None) -> None:
    for name, content in found.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(content)
    assert recover(tmp_path / "x") == (left is not None)
    if left is not None:
        assert (tmp_path / "x" / "content").read_text() == left
    with replacing(tmp_path / "x") as new:
        assert list(new.iterdir()) == []
        (new / "content").write_text("newer")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x" / "content").read_text() == "newer"


def test_full_disk_leaves_the_last_checkpoint(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "run"
    train(folder, output)
    before = digests(output / "checkpoint") | digests(output / "best")

    def fail(self: Any, path: str, *args: Any, **kwargs: Any) -> None:
        (Path(path) / "half.bin").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", fail)
        with pytest.raises(OSError, match=r"checkpoint could not be written \(.*No space left.*last complete"):
            train(folder, output, epochs=2, checkpoint_every=3)
    assert digests(output / "checkpoint") | digests(output / "best") == before
    assert not (output / "checkpoint.new").exists()
    with monkeypatch.context() as patch:
        patch.setattr(ShowAttendForConditionalGeneration, "save_pretrained", fail)
        with pytest.raises(OSError, match=r"best could not be written \(.*No space left"):
            train(folder, output, epochs=2)
    assert digests(output / "checkpoint") | digests(output / "best") == before

    def half(path: Path, text: str) -> None:
        path.write_bytes(text[:9].encode())
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="No space left"):
            training.write_log(output, {"epoch": 2}, {}, None)
    assert [line["epoch"] for line in train(folder, output, epochs=2)] == [1, 2]


def test_other_settings_are_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "run"
    with pytest.raises(OSError, match="ncoder"):
        train(
            folder, output, encoder_weights="nowhere.pth"
        )  # nothing was trained yet, so the settings may be corrected
    train(folder, output)
    recorded = (output / "settings.json").read_text()
    with pytest.raises(
        ValueError, match=r"run holds a run with another dropout, batch_size: resume it with its settings"
    ):
        train(folder, output, batch_size=4, dropout=0.1)
    assert (output / "settings.json").read_text() == recorded
    older = {name: value for name, value in json.loads(recorded).items() if name != "weight_decay"}
    (output / "settings.json").write_text(json.dumps(older))  # of a version that did not have this setting
    train(folder, output)
    with pytest.raises(ValueError, match=r"another weight_decay:"):
        train(folder, output, weight_decay=0.5)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match="another num_processes:"):  # steps would be counted in other batches
        train(folder, output)


# --- the same result however the work is shared out ---


@pytest.fixture(scope="module")
def doubled(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("doubled") / "run"
    train(folder, output, batch_size=10, **SHARED)
    return output


SHARED = dict(
    dropout=0.0, label_smoothing=0.1, doubly_stochastic_penalty=0.5, max_grad_norm=1.0, flip=True, learning_rate=1e-3
)


def assert_same_run(output: Path, expected: Path) -> None:
    weights, expected_weights = last_weights(output), last_weights(expected)
    for name, weight in expected_weights.items():
        if name != "decoder.attention.A.bias":  # no gradient but rounding, since softmax does not see it
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=2e-5, msg=name)
    for line, expected_line in zip(read_log(output), read_log(expected), strict=True):
        assert line == pytest.approx(expected_line, rel=1e-4)


def test_gradient_accumulation_equals_the_doubled_batch(folder: Path, tmp_path: Path, doubled: Path) -> None:
    train(folder, tmp_path / "run", batch_size=5, gradient_accumulation_steps=2, **SHARED)
    assert_same_run(tmp_path / "run", doubled)


def test_two_processes_equal_the_doubled_batch(folder: Path, tmp_path: Path, doubled: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(ROOT / "configs" / "accelerate_two_cpu_processes.yaml")]
    # A separate cache, so that they divide the images among them.
    arguments = command_line(folder, tmp_path / "run", batch_size=5, cache_dir=tmp_path / "cache", **SHARED)
    run([*launch, "-m", "modeling_showattend", "train", *arguments])
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["num_processes"] == 2
    assert_same_run(tmp_path / "run", doubled)
    # Not equal for lack of training: each part of the decoder has moved much farther.
    set_seed(42)
    start = training.build_model(training_settings(folder, tmp_path, **SHARED), None)[0].state_dict()
    for name in ("attention.U.weight", "lstm_cell.weight_hh", "init_h.weight", "fcn.weight"):
        assert (start[f"decoder.{name}"] - last_weights(doubled)[f"decoder.{name}"]).abs().max() > 1e-3


# --- learning ---


@pytest.fixture(scope="module")
def overfitted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("overfitted") / "run"
    schedule: dict[str, Any] = dict(lr_scheduler="constant_with_warmup", warmup_steps=30, learning_rate=0.002)
    train(folder, output, epochs=10, batch_size=4, embed_size=64, decoder_dim=128, dropout=0.0, **schedule)
    return output


def test_loss_falls(overfitted: Path) -> None:
    log = read_log(overfitted)
    assert log[-1]["train_loss"] < 0.4 * log[0]["train_loss"]
    assert log[-1]["token_accuracy"] > 0.5 > log[0]["token_accuracy"]


def test_warm_up(overfitted: Path) -> None:
    assert [line["learning_rate"] for line in read_log(overfitted)] == pytest.approx([0.001] + [0.002] * 9)


def test_validation_figures_by_hand(overfitted: Path, folder: Path) -> None:
    """From the saved model and the files alone: the mean over tokens, not over batches or captions."""
    model = AutoModelForImageTextToText.from_pretrained(overfitted / "best").eval()
    processor = AutoProcessor.from_pretrained(overfitted / "best")
    dataset = training.load_captions(folder / "photos")
    losses, right = [], []
    for row in dataset["validation"]:
        pixel_values = processor(row["image"], return_tensors="pt")["pixel_values"]
        for caption in row["captions"]:
            tokens = processor.tokenizer(caption, truncation=True, max_length=16, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logits = model(pixel_values=pixel_values, decoder_input_ids=tokens[:, :-1]).logits[0]
            losses += F.cross_entropy(logits, tokens[0, 1:], reduction="none").tolist()
            right += (logits.argmax(dim=-1) == tokens[0, 1:]).tolist()
    best = min(read_log(overfitted), key=lambda line: line["loss"])
    assert best["loss"] == pytest.approx(sum(losses) / len(losses), rel=2e-3)
    assert best["token_accuracy"] == pytest.approx(sum(right) / len(right), abs=0.51 / len(right))


def test_the_seed_moves_no_image_to_another_split(folder: Path, tmp_path: Path) -> None:
    forget_process()
    try:
        run = training.Trainer(training_settings(folder, tmp_path / "run", seed=7))
        run.load_data()
    finally:
        forget_process()
    assert run.validation_set["image_id"][:] == load_split(folder / "photos", "validation")["image_id"][:]


def test_finetuning_changes_the_last_stage_alone(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    rates = dict(learning_rate=1e-3, encoder_learning_rate=1e-4)
    train(folder, output, finetune_last_stages=1, min_crop=0.5, captions_per_image=5, batch_size=15, **rates)
    start = ShowAttendForConditionalGeneration.from_pretrained(output / "best").encoder
    names = dict(start.resnet.named_parameters())
    before = load_file(folder / "resnet18.safetensors")
    children = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    changed = set()
    for name, weight in last_weights(output).items():
        if name.startswith("encoder.resnet."):
            number, rest = name.removeprefix("encoder.resnet.").split(".", 1)
            original = before[f"{children[int(number)]}.{rest}"]
            if not torch.equal(weight, original):
                changed.add(name.removeprefix("encoder.resnet."))
                assert (weight - original).abs().max() < 1.01e-4 * 4  # Adam's steps are as large as the rate
    assert changed == {name for name in names if name.startswith("7.")}  # parameters, no statistics
    groups = torch.load(output / "checkpoint" / "optimizer.bin", weights_only=True)["param_groups"]
    assert [group["lr"] for group in groups] == [1e-3, 1e-4]
    assert len(groups[1]["params"]) == len(changed)


def test_learning_rate_falls_on_a_plateau_and_training_stops_early(folder: Path, tmp_path: Path) -> None:
    """A negligible rate: the loss improves by less than the scheduler's threshold."""
    stalled = dict(
        learning_rate=2e-7, plateau_factor=0.5, plateau_patience=0, metric_for_best_model="token_accuracy", dropout=0.0
    )
    log = train(folder, tmp_path / "run", epochs=9, early_stopping_patience=3, **stalled)
    assert [line["learning_rate"] for line in log] == pytest.approx([2e-7, 2e-7, 1e-7, 5e-8])
    assert len({line["token_accuracy"] for line in log}) == 1
    # The same command again: there is nothing left to do.
    assert train(folder, tmp_path / "run", epochs=9, early_stopping_patience=3, **stalled) == log


def test_best_is_the_model_of_the_best_epoch(folder: Path, tmp_path: Path) -> None:
    """The second epoch, at an absurd learning rate, ruins the model."""
    schedule = dict(lr_scheduler="linear", warmup_steps=1_000, learning_rate=100.0, max_grad_norm=0.0)
    log = train(folder, tmp_path / "run", epochs=2, **schedule)
    best = ShowAttendForConditionalGeneration.from_pretrained(tmp_path / "run" / "best").state_dict()
    last = last_weights(tmp_path / "run")
    assert not torch.equal(best["decoder.fcn.weight"], last["decoder.fcn.weight"])
    assert log[1]["loss"] > log[0]["loss"]


def test_average_of_the_weights(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[torch.Tensor] = []

    def recording(average: AveragedModel, model: Any) -> None:
        steps.append(model.decoder.fcn.weight.detach().clone())  # the initial weights first
        update_parameters(average, model)

    update_parameters = AveragedModel.update_parameters
    monkeypatch.setattr(AveragedModel, "update_parameters", recording)
    train(folder, tmp_path / "run", ema_decay=0.2, batch_size=20, learning_rate=1e-2)
    expected = steps[0]
    for weights, decay in zip(steps[1:], [1 / 11, 2 / 12, 0.2], strict=True):
        expected = decay * expected + (1 - decay) * weights
    best = load_file(tmp_path / "run" / "best" / "model.safetensors")["decoder.fcn.weight"]
    assert torch.allclose(best, expected, atol=1e-6)
    assert not torch.allclose(best, last_weights(tmp_path / "run")["decoder.fcn.weight"], atol=1e-4)


def test_self_critical_phase(folder: Path, tmp_path: Path, overfitted: Path) -> None:
    """On a small scale, from the best model of a first phase."""
    start: dict[str, Any] = dict(objective="self_critical", init_from=str(overfitted / "best"), samples_per_image=20)
    batches: dict[str, Any] = dict(captions_per_image=5, batch_size=10, gradient_accumulation_steps=2, epochs=6)
    rates: dict[str, Any] = dict(
        learning_rate=1e-3, lr_scheduler="constant", metric_for_best_model="cider", dropout=0.0
    )
    log = train(folder, tmp_path / "run", baseline="samples", **start, **batches, **rates)
    rewards = [-line["train_loss"] for line in log]
    assert 0 < rewards[0] < 10
    assert rewards[-1] > rewards[0] + 0.1
    with_meteor = train(folder, tmp_path / "meteor", baseline="samples", meteor_weight=5.0, **start, **batches, **rates)
    assert -with_meteor[0]["train_loss"] > rewards[0] + 0.5
    assert captions_with_auto_classes(tmp_path / "run" / "best", folder)


def test_self_critical_gradients_are_without_dropout(
    folder: Path, tmp_path: Path, overfitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the samples are: with dropout in one of the two, a baseline other than zero biases the gradient."""
    drawn_twice: list[bool] = []

    def compare(logits: torch.Tensor, labels: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        again = model[0](**batch[0].inputs, labels=labels).logits
        drawn_twice.append(torch.allclose(logits, again, atol=1e-5))
        return policy_gradient_loss(logits, labels, advantages)

    def remember(
        captioner: ShowAttendForConditionalGeneration, processor: Any, images: Any, *rest: Any, **sampling: Any
    ) -> Any:
        model[:], batch[:] = [captioner], [images]
        return sample_captions(captioner, processor, images, *rest, **sampling)

    model: list[ShowAttendForConditionalGeneration] = []
    batch: list[Any] = []
    monkeypatch.setattr(objectives, "policy_gradient_loss", compare)
    monkeypatch.setattr(objectives, "sample_captions", remember)
    start: dict[str, Any] = dict(objective="self_critical", init_from=str(overfitted / "best"), captions_per_image=5)
    train(folder, tmp_path / "run", dropout=0.5, batch_size=10, **start)
    assert drawn_twice and all(drawn_twice)


# --- what is refused before any training ---


@pytest.fixture
def no_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("training has begun")

    monkeypatch.setattr(training, "StepDataset", fail)


@pytest.mark.usefixtures("no_epoch")
def test_dataset_without_validation(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "photos", tmp_path / "photos")
    names = [path.name for path in (tmp_path / "photos" / "Images").iterdir()]
    (tmp_path / "photos" / "Flickr_8k.trainImages.txt").write_text("\n".join(names))
    with pytest.raises(ValueError, match="photos has no validation split, and training needs one"):
        train(folder, tmp_path / "run", dataset=str(tmp_path / "photos"))


@pytest.mark.usefixtures("no_epoch")
def test_unwritable_output_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"^`output_dir` .*/file/run cannot be written: Not a directory\.$"):
        train(folder, tmp_path / "file" / "run")


@pytest.mark.usefixtures("no_epoch")
def test_metric_that_cannot_be_measured(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^`metric_for_best_model` meteor cannot be measured on this machine"):
        train(folder, tmp_path / "run", metric_for_best_model="meteor")


@pytest.mark.usefixtures("no_epoch")
def test_no_captioner_to_start_from(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^[^\n]*nowhere[^\n]*$"):
        train(folder, tmp_path / "run", init_from=str(tmp_path / "nowhere"))


def test_loss_that_is_not_finite(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="in step 2 of epoch 1: a lower `learning_rate`"):
        train(folder, tmp_path / "run", learning_rate=1e38, lr_scheduler="constant")
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_precision_of_half(folder: Path, tmp_path: Path, overfitted: Path) -> None:
    """Every trained weight moves in bfloat16, whether captions are sampled from it before or not."""
    start = load_file(overfitted / "best" / "model.safetensors")
    common: dict[str, Any] = dict(mixed_precision="bf16", init_from=str(overfitted / "best"), finetune_last_stages=1)
    for objective in ("cross_entropy", "self_critical"):
        train(folder, tmp_path / objective, objective=objective, captions_per_image=5, batch_size=10, **common)
        for name, weights in last_weights(tmp_path / objective).items():
            trained = name.startswith("decoder.") or (name.startswith("encoder.resnet.7.") and "running" not in name)
            if trained and name != "decoder.attention.A.bias" and "num_batches" not in name:
                assert not torch.equal(weights, start[name]), name


def test_encoder_is_frozen_for_the_first_epochs(folder: Path, tmp_path: Path, overfitted: Path) -> None:
    settings: dict[str, Any] = dict(finetune_last_stages=1, captions_per_image=5, batch_size=15, freeze_epochs=1)
    train(folder, tmp_path / "run", **settings)
    first = last_weights(tmp_path / "run")
    before = load_file(folder / "resnet18.safetensors")
    assert torch.equal(first["encoder.resnet.7.0.conv1.weight"], before["layer4.0.conv1.weight"])
    train(folder, tmp_path / "run", epochs=2, **settings)
    second = last_weights(tmp_path / "run")
    assert not torch.equal(first["encoder.resnet.7.0.conv1.weight"], second["encoder.resnet.7.0.conv1.weight"])
    assert not torch.equal(first["decoder.fcn.weight"], second["decoder.fcn.weight"])
    start: dict[str, Any] = dict(objective="self_critical", init_from=str(overfitted / "best"))
    train(folder, tmp_path / "rewards", **start, **settings)
    sampled = last_weights(tmp_path / "rewards")
    assert torch.equal(sampled["encoder.resnet.7.0.conv1.weight"], before["layer4.0.conv1.weight"])


def test_average_with_the_start(folder: Path, tmp_path: Path, overfitted: Path) -> None:
    settings: dict[str, Any] = dict(init_from=str(overfitted / "best"), dropout=0.0, batch_size=20, max_length=12)
    train(folder, tmp_path / "run", average_with_start=0.75, epochs=2, **settings)
    assert json.loads((tmp_path / "run" / "best" / "generation_config.json").read_text())["max_length"] == 12
    start, best = (load_file(run / "best" / "model.safetensors") for run in (overfitted, tmp_path / "run"))
    train(folder, tmp_path / "plain", epochs=2, **settings)
    log, plain_log = read_log(tmp_path / "run"), read_log(tmp_path / "plain")
    assert [line["train_loss"] for line in log] == [line["train_loss"] for line in plain_log]
    assert [line["loss"] for line in log] != [line["loss"] for line in plain_log]
    assert log[1]["loss"] == min(line["loss"] for line in log)
    for name, end in last_weights(tmp_path / "run").items():
        if end.is_floating_point():
            torch.testing.assert_close(best[name], 0.75 * start[name] + 0.25 * end, rtol=0, atol=1e-6)
        if name.startswith("encoder."):
            assert torch.equal(best[name], start[name])  # to the last bit: cached features stay valid


def test_one_average_an_epoch(folder: Path, tmp_path: Path, overfitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that memory has no room for is not reported as a folder that cannot be written."""
    averages: list[float] = []

    def between(start: Any, end: Any, share: float) -> Any:
        averages.append(share)
        return average(start, end, share)

    average = training.between
    monkeypatch.setattr(training, "between", between)
    train(folder, tmp_path / "run", init_from=str(overfitted / "best"), average_with_start=0.75, epochs=2)
    assert averages == [0.75, 0.75]


def test_average_with_an_earlier_captioner(folder: Path, tmp_path: Path, overfitted: Path) -> None:
    settings: dict[str, Any] = dict(average_with_start=0.5, dropout=0.0, batch_size=20)
    train(folder, tmp_path / "1", init_from=str(overfitted / "best"), **settings)
    settings |= dict(init_from=str(tmp_path / "1" / "best"), average_with=str(overfitted / "best"))
    train(folder, tmp_path / "2", average_with_share=0.2, max_length=12, **settings)
    assert json.loads((tmp_path / "2" / "best" / "generation_config.json").read_text())["max_length"] == 12
    first, start, best = (
        load_file(run / "best" / "model.safetensors") for run in (overfitted, tmp_path / "1", tmp_path / "2")
    )
    for name, end in last_weights(tmp_path / "2").items():
        if end.is_floating_point():
            expected = 0.2 * first[name] + 0.8 * (0.5 * start[name] + 0.5 * end)
            torch.testing.assert_close(best[name], expected, rtol=0, atol=1e-6)
        if name.startswith("encoder."):
            assert torch.equal(best[name], first[name])  # to the last bit: cached features stay valid

    train(folder, tmp_path / "other", embed_size=32)
    settings |= dict(average_with=str(tmp_path / "other" / "best"))
    with pytest.raises(ValueError, match=r"`average_with` .*other/best has other sizes or another vocabulary"):
        train(folder, tmp_path / "3", **settings)


def test_generated_captions_are_trained_on(folder: Path, tmp_path: Path, overfitted: Path) -> None:
    trained_on: list[list[list[str]]] = []

    def remember(captions: Any, *others: Any) -> list[list[list[int]]]:
        trained_on.append([list(of_image) for of_image in captions])
        return caption_labels(trained_on[-1], *others)

    caption_labels = training.caption_labels
    settings: dict[str, Any] = dict(init_from=str(overfitted / "best"), generated_captions=2, captions_per_image=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "caption_labels", remember)
        train(folder, tmp_path / "run", batch_size=14, **settings)
    of_train, of_validation = trained_on
    rows = map(json.loads, (tmp_path / "run" / "generated.jsonl").read_text().splitlines())
    generated = {row["image_id"]: row["captions"] for row in rows}
    assert len(generated) == len(of_train) == 12
    for captions, others in zip(of_train, generated.values(), strict=True):
        assert len(captions) == 7 and set(captions[5:]) <= set(others) and not set(captions[5:]) & set(captions[:5])
    assert all(len(captions) == 5 for captions in of_validation)
    # They are of this start and seed, and of no other.
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    with pytest.raises(ValueError, match="holds a run with another seed"):
        train(folder, tmp_path / "run", batch_size=14, seed=1, **settings)


def test_start_that_has_changed(folder: Path, tmp_path: Path, overfitted: Path) -> None:
    shutil.copytree(overfitted / "best", tmp_path / "start")
    train(folder, tmp_path / "run", init_from=str(tmp_path / "start"), average_with_start=0.5)
    weights = load_file(tmp_path / "start" / "model.safetensors")
    weights["decoder.fcn.bias"] += 1
    save_file(weights, tmp_path / "start" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="holds a run with another weights_of_init_from"):
        train(folder, tmp_path / "run", init_from=str(tmp_path / "start"), average_with_start=0.5, epochs=2)


def test_idle_cores_are_reported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`accelerate launch` gives a process one thread on a CPU."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for threads in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        caplog.clear()
        forget_process()
        training.Trainer(training_settings(folder, tmp_path / "run"))
        assert ("Training uses 1 of 4 cores" in caplog.text) == (threads == 1)


def test_finished_run_is_skipped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = train(folder, tmp_path / "run")
    monkeypatch.delattr(training, "load_captions")  # nothing is read
    assert train(folder, tmp_path / "run") == log


# --- without a feature cache ---


def test_no_feature_cache(folder: Path, tmp_path: Path) -> None:
    """The losses are those of a run with the cache, up to the float16 that it keeps, whoever decodes the images."""
    settings: dict[str, Any] = dict(finetune_last_stages=1, captions_per_image=5, batch_size=15, dropout=0.0, flip=True)
    cached = train(folder, tmp_path / "cached", **settings)
    for num_workers in (0, 2):
        output = tmp_path / f"workers-{num_workers}"
        none = dict(feature_cache="none", cache_dir=str(tmp_path / "nothing"), num_workers=num_workers)
        (line,) = train(folder, output, **none, **settings)
        assert line == pytest.approx(cached[0], rel=1e-3)
        assert not (tmp_path / "nothing").exists()


def test_no_feature_cache_with_windows_of_the_images(folder: Path, tmp_path: Path, overfitted: Path) -> None:
    start: dict[str, Any] = dict(init_from=str(overfitted / "best"), feature_cache="none", min_crop=0.8, flip=True)
    (line,) = train(folder, tmp_path / "run", **start)
    assert 0 < line["train_loss"] < read_log(overfitted)[0]["train_loss"]
    rewards = train(folder, tmp_path / "rewards", objective="self_critical", captions_per_image=5, **start)
    assert -10 < rewards[0]["train_loss"] < 0
    generated = dict(generated_captions=1, captions_per_image=6, batch_size=12)
    train(folder, tmp_path / "generated", **generated, **start)
    assert len((tmp_path / "generated" / "generated.jsonl").read_text().splitlines()) == 12


def test_no_feature_cache_on_two_processes(folder: Path, tmp_path: Path) -> None:
    """Two processes learn what one with the doubled batch does, while the encoder is frozen and once it is not."""
    settings: dict[str, Any] = dict(
        feature_cache="none", finetune_last_stages=1, freeze_epochs=1, captions_per_image=5, epochs=2, dropout=0.0
    )
    train(folder, tmp_path / "one", batch_size=10, **settings)
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(ROOT / "configs" / "accelerate_two_cpu_processes.yaml")]
    run([*launch, "-m", "showattend", "train", *command_line(folder, tmp_path / "two", batch_size=5, **settings)])
    for line, expected in zip(read_log(tmp_path / "two"), read_log(tmp_path / "one"), strict=True):
        assert line == pytest.approx(expected, rel=1e-4)
    # The encoder's weights differ where a gradient is mostly rounding noise, of which Adam keeps only the sign.
    weights, others = last_weights(tmp_path / "two"), last_weights(tmp_path / "one")
    difference = weights["encoder.resnet.7.0.conv1.weight"] - others["encoder.resnet.7.0.conv1.weight"]
    assert difference.abs().mean() < 1e-6
