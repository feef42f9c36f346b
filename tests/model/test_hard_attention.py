"""Hard attention: its gradient against an enumeration of all positions, and all that works with soft attention."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_flickr import make_folder, settings
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText

from modeling_showattend import ShowAttendConfig, ShowAttendProcessor
from modeling_showattend import modeling_showattend as modeling
from showattend.attention.maps import attend
from showattend.checkpoints import load_captioner
from showattend.export.onnx_captioner import OnnxCaptioner
from showattend.export.onnx_export import export_onnx
from showattend.training.settings import TrainingSettings
from showattend.training.trainer import train

MakeModel = Callable[..., Any]
LABELS = torch.tensor([[5, 9, 3]])


def plain_step(decoder: Any, features: torch.Tensor, token: int, h: Any, c: Any, position: int | None) -> Any:
    """Weights, next state and log probabilities of one caption's step; `position` None: the expected context."""
    attention = decoder.attention
    weights = attention.A(torch.tanh(attention.U(features) + attention.W(h))).squeeze(-1).softmax(dim=-1)
    context = weights @ features if position is None else features[position]
    context = torch.sigmoid(decoder.f_beta(h)) * context
    word = decoder.embedding.weight[token]
    h, c = decoder.lstm_cell(torch.cat([word, context]), (h, c))
    output = torch.tanh(word + decoder.output_h(h) + decoder.output_z(context))
    return weights, h, c, decoder.fcn(output).log_softmax(dim=-1)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.decoder.named_parameters() if p.grad is not None}


def test_the_estimators_mean_is_the_gradient_over_all_positions(
    make_model: MakeModel, image_features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four positions at three steps: all 64 ways to look, each weighted with its probability."""
    model = make_model(attention_type="hard", context_gate=True, deep_output=True, dropout=0.0)
    features = image_features[:1]
    ways = list(itertools.product(range(4), repeat=3))

    expected = torch.zeros(())
    for way in ways:
        mean = features[0].mean(dim=0)
        h, c = model.decoder.init_h(mean), model.decoder.init_c(mean)
        probability, log_likelihood = torch.ones(()), torch.zeros(())
        for token, label, position in zip([2, 5, 9], [5, 9, 3], way, strict=True):
            weights, h, c, log_probabilities = plain_step(model.decoder, features[0], token, h, c, position)
            probability = probability * weights[position]
            log_likelihood = log_likelihood + log_probabilities[label]
        expected = expected - probability * log_likelihood
    expected.backward()
    exact = gradients(model)

    monkeypatch.setattr(modeling, "EXPECTED_SHARE", 0)
    monkeypatch.setattr(modeling, "ENTROPY_WEIGHT", 0)
    model.train()
    estimated = {name: torch.zeros_like(gradient) for name, gradient in exact.items()}
    total = 0.0
    for way in ways:
        positions = iter(way)
        monkeypatch.setattr(torch, "multinomial", lambda *_, p=positions: torch.tensor([[next(p)]]))
        model.zero_grad()
        model.decoder.baseline.fill_(-1.7)
        output = model(image_features=features, labels=LABELS, num_items_in_batch=1)
        output.loss.backward()
        probability = output.cross_attentions[0][0, 0, range(3), list(way)].prod().item()
        total += probability
        for name, gradient in gradients(model).items():
            estimated[name] += probability * gradient
    assert total == pytest.approx(1, abs=1e-5)
    assert max(gradient.abs().max() for name, gradient in exact.items() if name.startswith("attention")) > 0.01
    for name, gradient in exact.items():
        assert torch.allclose(estimated[name], gradient, atol=2e-5), name


def test_images_that_read_the_expected_context_have_the_gradient_of_soft_attention_and_the_entropy(
    make_model: MakeModel, image_features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling, "EXPECTED_SHARE", 1)
    losses = {}
    for kind in ("soft", "hard"):
        model = make_model(attention_type=kind, dropout=0.0).train()
        output = model(image_features=image_features, labels=LABELS.expand(3, 3))
        losses[kind] = output.loss
        weights = output.cross_attentions[0]
    entropy = -(weights * weights.log()).sum(dim=-1).mean()
    assert losses["hard"].item() == pytest.approx((losses["soft"] - 0.002 * entropy).item(), abs=1e-6)
    losses["hard"].backward()
    assert model.decoder.attention.A.weight.grad.abs().max() > 0 and model.decoder.baseline == 0


def test_positions_are_drawn_from_the_weights_for_half_of_the_images(make_model: MakeModel) -> None:
    model = make_model(attention_type="hard", seed=4).train()
    torch.manual_seed(0)
    features = 1.5 * torch.randn(1, 4, 512).expand(4000, 4, 512)
    with torch.no_grad():
        _, weights, choices = model.decoder(features, torch.full((8000, 2), 2))
    drawn = choices.sum(dim=-1)  # (captions, steps)
    assert set(drawn.unique().tolist()) == {0, 1} and (drawn == drawn[:, :1]).all()
    assert (drawn[::2] == drawn[1::2]).all()  # an image's captions
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.03)
    for step in range(2):
        shares = choices[:, step].sum(dim=0) / choices[:, step].sum()
        assert shares.numpy() == pytest.approx(weights[:, step].mean(dim=0).numpy(), abs=0.03)
    assert weights[0, 0].max() - weights[0, 0].min() > 0.1


def test_the_baseline_is_a_moving_average_of_a_tokens_log_likelihood(
    make_model: MakeModel, image_features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling, "EXPECTED_SHARE", 0)
    model = make_model(attention_type="hard", dropout=0.0, label_smoothing=0.2).train()
    labels = torch.tensor([[5, 9, 3], [6, 3, -100], [-100, -100, -100]])
    means = []
    for _ in range(2):
        output = model(image_features=image_features, labels=labels, skip_logits=False)
        logits, targets = output.logits.flatten(0, 1), labels.flatten()
        means.append(-F.cross_entropy(logits, targets, ignore_index=-100).item())
        if len(means) == 1:
            assert model.decoder.baseline.item() == pytest.approx(means[0], abs=1e-5)
    assert model.decoder.baseline.item() == pytest.approx(0.9 * means[0] + 0.1 * means[1], abs=1e-5)
    assert means[0] != means[1]


def test_generation_reads_the_expected_context(make_model: MakeModel, image_features: torch.Tensor) -> None:
    soft, hard = (make_model(attention_type=kind, seed=6) for kind in ("soft", "hard"))
    for search in ({"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "use_cache": False}):
        captions = [model.generate(image_features=image_features, **search) for model in (soft, hard)]
        assert torch.equal(*captions)


@pytest.mark.parametrize("cache", [True, False])
def test_generation_may_look_at_the_likeliest_position(
    make_model: MakeModel, image_features: torch.Tensor, cache: bool
) -> None:
    switches = dict(context_gate=True, deep_output=True)
    model = make_model(attention_type="hard", likeliest_position=True, seed=6, **switches)
    captions = model.generate(image_features=image_features, num_beams=1, max_length=8, use_cache=cache)
    decoder = model.decoder
    for features, caption in zip(image_features, captions.tolist(), strict=True):
        h, c = decoder.init_h(features.mean(dim=0)), decoder.init_c(features.mean(dim=0))
        for token, following in itertools.pairwise(caption[: caption.index(3) + 1 if 3 in caption else None]):
            weights, *_ = plain_step(decoder, features, token, h, c, None)
            _, h, c, log_probabilities = plain_step(decoder, features, token, h, c, int(weights.argmax()))
            assert log_probabilities.argmax() == following
    expected = make_model(attention_type="hard", seed=6, **switches)
    assert not torch.equal(expected.generate(image_features=image_features, num_beams=1, max_length=8), captions)


def test_checkpoints_keep_it_and_change_it(
    make_model: MakeModel, processor: ShowAttendProcessor, image_features: torch.Tensor, tmp_path: Path
) -> None:
    model = make_model(attention_type="hard")
    model.decoder.baseline.fill_(-2.5)
    model.save_pretrained(tmp_path / "hard")
    make_model().save_pretrained(tmp_path / "soft")
    for name in ("hard", "soft"):
        processor.save_pretrained(tmp_path / name)
    loaded: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "hard", trust_remote_code=True)
    assert (loaded.config.attention_type, loaded.decoder.baseline.item()) == ("hard", -2.5)
    hard: Any = load_captioner(tmp_path / "hard")[0]
    hardened: Any = load_captioner(tmp_path / "soft", attention_type="hard")[0]
    assert (hard.decoder.baseline, hardened.decoder.baseline) == (-2.5, 0)
    softened, _ = load_captioner(tmp_path / "hard", attention_type="soft")
    assert "decoder.baseline" not in softened.state_dict()
    assert torch.equal(softened.generate(image_features=image_features), model.generate(image_features=image_features))


def test_unknown_types_are_refused() -> None:
    assert ShowAttendConfig().attention_type == "soft"
    with pytest.raises(ValueError, match="attention_type='harder' is unknown: it is soft or hard"):
        ShowAttendConfig(attention_type="harder")
    with pytest.raises(ValueError, match="likeliest_position=True needs attention_type='hard'"):
        ShowAttendConfig(likeliest_position=True)


@pytest.mark.parametrize("likeliest", [False, True])
def test_figures_and_onnx_are_those_of_the_caption(
    make_model: MakeModel, processor: ShowAttendProcessor, tmp_path: Path, likeliest: bool
) -> None:
    model = make_model(attention_type="hard", likeliest_position=likeliest, seed=6, context_gate=True)
    model.save_pretrained(tmp_path / "captioner")
    processor.save_pretrained(tmp_path / "captioner")
    export_onnx(str(tmp_path / "captioner"), str(tmp_path / "onnx"), precisions=["float32"])
    captioner = OnnxCaptioner.from_pretrained(tmp_path / "onnx", precision="float32")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    exported = captioner(image, num_beams=3, max_length=8)
    attended = attend(model, processor, image, num_beams=3, max_length=8)
    assert exported.text == attended.caption != ""
    assert attended.grids.sum(axis=(1, 2)) == pytest.approx(np.ones(len(attended.words)), abs=1e-5)


def test_training_sets_the_attention_type(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    first = train(TrainingSettings(**settings(folder, tmp_path / "hard", attention_type="hard")))
    model: Any = load_captioner(first)[0]
    assert model.config.attention_type == "hard" and model.decoder.baseline < -0.5
    second = settings(folder, tmp_path / "kept", init_from=str(first))
    assert load_captioner(train(TrainingSettings(**second)))[0].config.attention_type == "hard"
    third = settings(folder, tmp_path / "soft", init_from=str(first), attention_type="soft")
    assert load_captioner(train(TrainingSettings(**third)))[0].config.attention_type == "soft"
