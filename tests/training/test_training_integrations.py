"""The tools around transformers models work with this one unchanged: Trainer, accelerate, dtypes, devices, compile."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from tiny_flickr import ROOT
from transformers import EvalPrediction, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor

Model = ShowAttendForConditionalGeneration
MakeModel = Callable[..., Any]
LABELS = torch.tensor([[5, 6, 9, 11, 3], [7, 8, 3, -100, -100], [10, 5, 12, 3, -100], [5, 3, -100, -100, -100]])


@pytest.fixture
def examples(pixel_values: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    images = torch.cat([pixel_values, -pixel_values])
    return [{"pixel_values": image, "labels": labels} for image, labels in zip(images, LABELS, strict=True)]


def arguments(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "max_steps": 2,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **changes,
    }


# --- Trainer ---


def test_trainer(make_model: MakeModel, examples: Any, tmp_path: Path) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = Trainer(
        model=model, args=TrainingArguments(**arguments(tmp_path)), train_dataset=examples, eval_dataset=examples
    )
    assert trainer.train().training_loss > 0
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    assert 0 < trainer.evaluate()["eval_loss"] < 20
    trainer.save_model(str(tmp_path / "saved"))
    loaded = Model.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.decoder.fcn.weight, model.decoder.fcn.weight)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.6"),
    reason="before 5.6, Trainer divides the gradients by the accumulation steps twice",
)
def test_gradient_accumulation_equals_one_large_batch(make_model: MakeModel, examples: Any, tmp_path: Path) -> None:
    """The captions differ in length, so averaging the means of the parts would give another gradient."""
    weights = []
    for batch_size in (4, 2, 1):
        model = make_model(dropout=0.0, label_smoothing=0.1, doubly_stochastic_penalty=0.5)
        options = arguments(
            tmp_path,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=4 // batch_size,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=1000.0,
        )
        trainer = Trainer(model=model, args=TrainingArguments(**options), train_dataset=examples)
        loss = trainer.train().training_loss
        weights.append((loss, model.decoder.fcn.weight.detach()))
    start = make_model().decoder.fcn.weight
    for loss, weight in weights[1:]:
        assert loss == pytest.approx(weights[0][0], rel=1e-4)
        torch.testing.assert_close(weight, weights[0][1], rtol=1e-3, atol=1e-5)
        assert (weight - start).abs().max() > 0.01


def test_seq2seq_trainer_generates(make_model: MakeModel, examples: Any, tmp_path: Path) -> None:
    model = make_model(seed=1)
    seen: list[EvalPrediction] = []

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        seen.append(prediction)
        return {"length": float(np.not_equal(prediction.predictions, 0).sum(axis=1).mean())}

    options = arguments(tmp_path, predict_with_generate=True, generation_max_length=8, generation_num_beams=2)
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**options),
        train_dataset=examples,
        eval_dataset=examples,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_length"] > 1
    assert 0 < metrics["eval_loss"] < 20
    images = torch.stack([example["pixel_values"] for example in examples])
    expected = model.eval().generate(images, num_beams=2, max_length=8)
    predictions = torch.as_tensor(seen[0].predictions)[:, : expected.shape[1]]
    torch.testing.assert_close(predictions.where(predictions != -100, 0), expected)


def test_trainer_takes_precomputed_features(make_model: MakeModel, examples: Any, tmp_path: Path) -> None:
    losses = []
    for precomputed in (False, True):
        model = make_model(dropout=0.0)
        data = examples
        if precomputed:
            data = [
                {
                    "image_features": model.encoder.frozen_features(example["pixel_values"][None])[0],
                    "labels": example["labels"],
                }
                for example in examples
            ]
        trainer = Trainer(model=model, args=TrainingArguments(**arguments(tmp_path)), train_dataset=data)
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_activation_checkpointing_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="does not support"):
        make_model().gradient_checkpointing_enable()


# --- dtypes ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(make_model: MakeModel, pixel_values: torch.Tensor, tmp_path: Path, dtype: torch.dtype) -> None:
    model = make_model(context_gate=True, deep_output=True, dropout=0.0)
    model.save_pretrained(tmp_path)
    half = Model.from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}
    ids = torch.tensor([[2, 5, 6], [2, 7, 8]])
    with torch.no_grad():
        expected = model(pixel_values=pixel_values, decoder_input_ids=ids)
        for images in (pixel_values, pixel_values.to(dtype)):
            output = half(pixel_values=images, decoder_input_ids=ids)
            assert output.logits.dtype == dtype
            difference = output.logits.float() - expected.logits
            assert difference.norm() < 8 * torch.finfo(dtype).eps * expected.logits.norm()
    for options in ({}, {"num_beams": 3}, {"do_sample": True}):
        assert half.generate(pixel_values, max_length=6, **options).shape[0] == 2
    half.train()(pixel_values=pixel_values, labels=LABELS[:2]).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in half.decoder.parameters())


def test_autocast(make_model: MakeModel, pixel_values: torch.Tensor) -> None:
    model = make_model(context_gate=True, deep_output=True, dropout=0.0, doubly_stochastic_penalty=1.0).train()
    plain = model(pixel_values=pixel_values, labels=LABELS[:2])
    plain.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.decoder.named_parameters()}
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(pixel_values=pixel_values, labels=LABELS[:2])
        assert output.loss.dtype == torch.float32
        assert model.eval().generate(pixel_values, num_beams=2, max_length=6).shape[0] == 2
    output.loss.backward()
    torch.testing.assert_close(output.loss, plain.loss, rtol=0.05, atol=0.05)
    for name, p in model.decoder.named_parameters():
        assert p.grad.dtype == torch.float32
        if name != "attention.A.bias":  # zero but for rounding, since softmax does not see it
            similarity = torch.cosine_similarity(p.grad.flatten(), expected[name].flatten(), dim=0)
            assert similarity > 0.95, name


# --- devices ---


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_device_map(
    make_model: MakeModel, pixel_values: torch.Tensor, tmp_path: Path, device_map: str | dict[str, str]
) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = Model.from_pretrained(tmp_path, device_map=device_map)
    assert torch.equal(
        loaded.generate(pixel_values.to(loaded.device), num_beams=2).cpu(), model.generate(pixel_values, num_beams=2)
    )


def test_encoder_can_be_offloaded_to_disk(make_model: MakeModel, pixel_values: torch.Tensor, tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = Model.from_pretrained(
        tmp_path, device_map={"encoder": "disk", "decoder": "cpu"}, offload_folder=tmp_path / "offload"
    )
    assert all(p.is_meta for p in loaded.encoder.parameters())
    assert torch.equal(loaded.generate(pixel_values, num_beams=2), model.generate(pixel_values, num_beams=2))


def test_loading_on_the_meta_device_takes_no_memory(make_model: MakeModel, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    loaded = Model.from_pretrained(tmp_path, device_map="meta")
    assert all(p.is_meta for p in loaded.parameters())


# --- torch.compile ---

COMPILE = """
import torch
from modeling_showattend import ShowAttendForConditionalGeneration as Model

model, features = Model.from_pretrained({folder!r}), torch.load({features!r})
labels = torch.tensor({labels!r})

def results():
    model.zero_grad()
    output = model(image_features=features, labels=labels)
    output.loss.backward()
    captions = [model.generate(image_features=features, max_length=6, num_beams=beams) for beams in (1, 3)]
    return output.loss, model.decoder.lstm_cell.weight_hh.grad.clone(), *captions

plain = results()
compiled_calls = 0

def count(graph, inputs):
    global compiled_calls
    compiled_calls += 1
    return torch._dynamo.lookup_backend({backend!r})(graph, inputs)

model.decoder.forward = torch.compile(model.decoder.forward, backend=count)
for a, b in zip(results(), plain, strict=True):
    torch.testing.assert_close(a, b)
assert compiled_calls > 0
"""


def test_torch_compile(make_model: MakeModel, image_features: torch.Tensor, tmp_path: Path) -> None:
    """In a process of its own: what dynamo has seen and switched cannot be undone."""
    model = make_model(seed=1, dropout=0.0, context_gate=True, deep_output=True)
    model.save_pretrained(tmp_path)
    torch.save(image_features, tmp_path / "features.pt")
    script = COMPILE.format(
        folder=str(tmp_path),
        features=str(tmp_path / "features.pt"),
        labels=LABELS[:3].tolist(),
        backend="aot_eager",
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 0, process.stderr


def test_save_pretrained_is_safetensors_in_any_dtype(
    make_model: MakeModel, processor: ShowAttendProcessor, tmp_path: Path
) -> None:
    make_model().to(torch.bfloat16).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".py", ".safetensors"}
    assert Model.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
