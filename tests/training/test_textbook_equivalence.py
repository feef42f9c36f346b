from collections.abc import Callable
from typing import Any

import pytest
import torch

from modeling_showattend import ShowAttendConfig, ShowAttendForConditionalGeneration
from showattend.training.textbook import textbook_caption, textbook_loss


@pytest.mark.parametrize("context_gate", [False, True])
def test_a_training_step_has_the_loss_and_gradients_of_the_textbook_loop(context_gate: bool) -> None:
    torch.manual_seed(0)
    config = ShowAttendConfig(
        encoder_name="resnet18",
        embed_size=24,
        attention_dim=20,
        decoder_dim=32,
        vocab_size=101,
        bos_token_id=2,
        eos_token_id=3,
        dropout=0.0,
        context_gate=context_gate,
    )
    model = ShowAttendForConditionalGeneration(config).train()
    with torch.no_grad():
        model.decoder.attention.A.weight *= 20  # some positions count more than others
        model.decoder.lstm_cell.weight_hh *= 3  # and what the state has kept matters
        model.decoder.fcn.weight *= 3
    features = torch.randn(6, 49, config.encoder_dim).relu()
    labels = torch.randint(4, config.vocab_size, (6, 17))
    for row, length in enumerate([17, 3, 17, 1, 12, 8]):
        labels[row, length - 1] = config.eos_token_id
        labels[row, length:] = -100

    def loss_and_gradients(ours: bool) -> dict[str, torch.Tensor]:
        image_features = features.clone().requires_grad_()
        model.zero_grad()
        if ours:
            loss = model(image_features=image_features, labels=labels, skip_logits=True).loss
        else:
            loss = textbook_loss(model, image_features, labels)
        loss.backward()
        gradients = {name: parameter.grad.clone() for name, parameter in model.decoder.named_parameters()}
        return {"loss": loss.detach(), "image_features": image_features.grad, **gradients}

    ours, textbook = loss_and_gradients(ours=True), loss_and_gradients(ours=False)
    for name, expected in textbook.items():
        # The attention's last bias shifts all scores alike, so that its gradient is rounding noise around zero.
        assert name == "attention.A.bias" or expected.abs().max() > 1e-4, name
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("deep_output", [False, True])
def test_caption(
    make_model: Callable[..., ShowAttendForConditionalGeneration],
    pixel_values: torch.Tensor,
    num_beams: int,
    deep_output: bool,
) -> None:
    model = make_model(context_gate=True, deep_output=deep_output)
    for image in pixel_values.split(1):
        caption = textbook_caption(model, image, num_beams=num_beams, max_length=12)
        search: dict[str, Any] = dict(num_beams=num_beams, length_penalty=0.0, early_stopping="never", max_length=12)
        assert caption == model.generate(pixel_values=image, **search)[0].tolist()
