"""The network and its loss: shapes, what is trained and what is frozen, and every formula against a plain one."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from modeling_showattend import ShowAttendConfig, ShowAttendForConditionalGeneration
from modeling_showattend.deferred_linear_showattend import recurrent_linear

Model = ShowAttendForConditionalGeneration
MakeConfig = Callable[..., ShowAttendConfig]
MakeModel = Callable[..., Any]

# Three captions of different lengths: [SEP] is 3, -100 is padding.
LABELS = torch.tensor([[5, 6, 9, 11, 3], [7, 8, 3, -100, -100], [10, 5, 12, 3, -100]])


def plain_decoder(
    model: Any, features: torch.Tensor, decoder_input_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The decoder as the paper writes it, with torch's own LSTMCell: logits and attention of one caption an image."""
    decoder, config = model.decoder, model.config
    h, c = decoder.init_h(features.mean(dim=1)), decoder.init_c(features.mean(dim=1))
    logits, attentions = [], []
    for step in range(decoder_input_ids.shape[1]):
        word = decoder.embedding(decoder_input_ids[:, step])
        scores = decoder.attention.A(
            torch.tanh(decoder.attention.U(features) + decoder.attention.W(h).unsqueeze(1))
        ).squeeze(-1)
        weights = torch.softmax(scores, dim=1)  # (images, positions)
        context = (weights.unsqueeze(-1) * features).sum(dim=1)  # (images, encoder_dim)
        if config.context_gate:
            context = torch.sigmoid(decoder.f_beta(h)) * context
        h, c = decoder.lstm_cell(torch.cat([word, context], dim=1), (h, c))
        out = torch.tanh(word + decoder.output_h(h) + decoder.output_z(context)) if config.deep_output else h
        logits.append(decoder.fcn(out))
        attentions.append(weights)
    return torch.stack(logits, dim=1), torch.stack(attentions, dim=1)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- the forward pass ---


@pytest.mark.parametrize(
    "options", [{}, {"context_gate": True}, {"deep_output": True}, {"context_gate": True, "deep_output": True}]
)
def test_decoder_is_the_papers(make_model: MakeModel, image_features: torch.Tensor, options: dict[str, bool]) -> None:
    model = make_model(dropout=0.0, **options).train()
    output = model(image_features=image_features, labels=LABELS, skip_logits=False)
    output.loss.backward()
    got = gradients(model)
    model.zero_grad()

    inputs = torch.tensor([[2, 5, 6, 9, 11], [2, 7, 8, 3, 0], [2, 10, 5, 12, 3]])
    logits, attentions = plain_decoder(model, image_features, inputs)
    loss = F.cross_entropy(logits.flatten(0, 1), LABELS.flatten(), ignore_index=-100)
    loss.backward()

    torch.testing.assert_close(output.logits, logits)
    torch.testing.assert_close(output.cross_attentions[0].squeeze(1), attentions)
    torch.testing.assert_close(output.loss, loss)
    expected = gradients(model)
    assert set(got) == set(expected) == {f"decoder.{name}" for name, _ in model.decoder.named_parameters()}
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], msg=name)


def test_outputs(make_model: MakeModel, pixel_values: torch.Tensor) -> None:
    model = make_model()
    output = model(pixel_values=pixel_values, decoder_input_ids=torch.tensor([[2, 5, 6], [2, 7, 8]]))
    assert output.loss is None
    assert output.logits.shape == (2, 3, model.config.vocab_size)
    assert output.encoder_last_hidden_state.shape == (2, 4, 512)
    (attentions,) = output.cross_attentions
    assert attentions.shape == (2, 1, 3, 4)  # captions, heads, steps, positions
    torch.testing.assert_close(attentions.sum(dim=-1), torch.ones(2, 1, 3))
    assert output.past_key_values.get_seq_length() == 3
    assert model(pixel_values=pixel_values, labels=LABELS[:2]).past_key_values is None
    assert isinstance(output, Seq2SeqLMOutput)
    as_tuple = model(pixel_values=pixel_values, labels=LABELS[:2], return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert as_tuple[0].ndim == 0


def test_step_by_step_equals_at_once(make_model: MakeModel, image_features: torch.Tensor) -> None:
    model = make_model(context_gate=True, deep_output=True)
    ids = torch.tensor([[2, 5, 6, 9], [2, 7, 8, 11], [2, 10, 5, 12]])
    at_once = model(image_features=image_features, decoder_input_ids=ids).logits
    cache, logits = None, []
    for part in (ids[:, :1], ids[:, 1:3], ids[:, 3:]):
        output = model(image_features=image_features, decoder_input_ids=part, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), at_once)


def test_three_ways_in_are_equivalent(make_model: MakeModel, pixel_values: torch.Tensor) -> None:
    model = make_model()
    encoded = model.encoder(pixel_values=pixel_values)
    ways: list[dict[str, Any]] = [
        {"pixel_values": pixel_values},
        {"image_features": model.encoder.frozen_features(pixel_values)},
        {"encoder_outputs": encoded},
        {"encoder_outputs": BaseModelOutput(last_hidden_state=encoded.last_hidden_state)},
        {"encoder_outputs": (encoded.last_hidden_state,)},
    ]
    expected_loss, expected_ids = model(**ways[0], labels=LABELS[:2]).loss, model.generate(**ways[0])
    assert not torch.equal(expected_ids[0], expected_ids[1])
    for way in ways[1:]:
        torch.testing.assert_close(model(**way, labels=LABELS[:2]).loss, expected_loss)
        assert torch.equal(model.generate(**way), expected_ids)
    assert torch.equal(model.generate(pixel_values), expected_ids)


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("pixel_values", "image_features"),
        ("pixel_values", "encoder_outputs"),
        ("image_features", "encoder_outputs"),
        ("pixel_values", "image_features", "encoder_outputs"),
    ],
)
def test_exactly_one_way_in(make_model: MakeModel, pixel_values: torch.Tensor, names: tuple[str, ...]) -> None:
    model = make_model()
    encoded = model.encoder(pixel_values=pixel_values)
    ways = {
        "pixel_values": pixel_values,
        "image_features": encoded.last_hidden_state,
        "encoder_outputs": encoded,
    }
    given = {name: ways[name] for name in names}
    with pytest.raises(ValueError, match="exactly one of pixel_values, image_features and encoder_outputs"):
        model(**given, labels=LABELS[:2])
    with pytest.raises(ValueError, match="exactly one of pixel_values, image_features and encoder_outputs"):
        model.generate(**given)


def test_bad_inputs_are_named(make_model: MakeModel, pixel_values: torch.Tensor) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"pixel_values must be \(batch, 3, height, width\), not \(3, 64, 64\)"):
        model.generate(pixel_values[0])
    with pytest.raises(ValueError, match=r"image_features must be \(batch, positions, 512\), not \(2, 4, 100\)"):
        model.generate(image_features=torch.zeros(2, 4, 100))
    with pytest.raises(ValueError, match="decoder_input_ids or labels"):
        model(pixel_values=pixel_values)
    with pytest.raises(ValueError, match="3 captions cannot be shared out evenly among 2 images"):
        model(pixel_values=pixel_values, labels=LABELS)


@pytest.mark.parametrize(
    ("encoder_name", "encoder_dim"),
    [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048), ("resnet101", 2048), ("resnet152", 2048)],
)
def test_every_resnet(make_config: MakeConfig, encoder_name: str, encoder_dim: int) -> None:
    config = make_config(encoder_name=encoder_name)
    assert config.encoder_dim == encoder_dim
    with torch.device("meta"):
        model = Model(config)
        for (height, width), positions in {(224, 224): 49, (64, 96): 6, (448, 320): 140}.items():
            images = torch.zeros(2, 3, height, width)
            output = model(pixel_values=images, decoder_input_ids=torch.zeros(2, 5, dtype=torch.long))
            assert output.encoder_last_hidden_state.shape == (2, positions, encoder_dim)
            assert output.logits.shape == (2, 5, config.vocab_size)
            assert output.cross_attentions[0].shape == (2, 1, 5, positions)


def test_grid_is_read_row_by_row(make_model: MakeModel, pixel_values: torch.Tensor) -> None:
    model, pixel_values = make_model().double(), pixel_values.double()
    maps = model.encoder.resnet(pixel_values)  # (2, 512, 2, 2)
    grid = model.encoder(pixel_values=pixel_values).last_hidden_state
    torch.testing.assert_close(grid[:, 1], maps[:, :, 0, 1])
    torch.testing.assert_close(grid[:, 2], maps[:, :, 1, 0])


# --- what is trained ---


def test_encoder_is_torchvisions(make_config: MakeConfig) -> None:
    """Same weights, same features: no part of the ResNet is missing, swapped or added."""
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(weights=None).eval()
    model = Model(make_config()).eval()
    model.encoder.resnet.load_state_dict(torch.nn.Sequential(*list(resnet.children())[:-2]).state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        pooled = model.encoder(pixel_values=images).last_hidden_state.mean(dim=1)
        torch.testing.assert_close(resnet.fc(pooled), resnet(images))


@pytest.mark.parametrize("stages", [0, 1, 2, 3, 4])
def test_exactly_the_last_stages_train(
    make_model: MakeModel, pixel_values: torch.Tensor, tmp_path: Path, stages: int
) -> None:
    model = make_model(finetune_last_stages=stages, dropout=0.0)
    model.save_pretrained(tmp_path)
    model = Model.from_pretrained(tmp_path)  # which sets requires_grad on every parameter
    model.train()
    trained = {f"encoder.resnet.{8 - stage}." for stage in range(1, stages + 1)} | {"decoder."}

    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(pixel_values=pixel_values, labels=LABELS[:2]).loss.backward()
        optimizer.step()
        assert not any(m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))

    parameters = dict(model.named_parameters())
    # Softmax ignores a constant added to all scores, so its gradient is zero.
    del before["decoder.attention.A.bias"]
    for name, old in before.items():
        value = model.state_dict()[name]
        is_trained = name in parameters and any(name.startswith(part) for part in trained)
        assert is_trained != torch.equal(value, old), name
        if name in parameters:
            assert parameters[name].requires_grad == is_trained, name


@pytest.mark.parametrize("stages", [1, 2])
def test_frozen_features_go_through_the_finetuned_stages(
    make_model: MakeModel, pixel_values: torch.Tensor, stages: int
) -> None:
    model = make_model(finetune_last_stages=stages)
    features = model.encoder.frozen_features(pixel_values)
    assert features.shape == {1: (2, 256, 4, 4), 2: (2, 128, 8, 8)}[stages]
    assert not features.requires_grad
    expected = model(pixel_values=pixel_values, labels=LABELS[:2])
    torch.testing.assert_close(model(image_features=features, labels=LABELS[:2]).loss, expected.loss)
    assert torch.equal(model.generate(image_features=features), model.generate(pixel_values))


def test_frozen_after_eval_and_train_again(make_model: MakeModel) -> None:
    model = make_model()
    model.requires_grad_(True)
    model.eval().train()
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for p in model.decoder.parameters())


def test_a_callers_freeze_stays(make_model: MakeModel) -> None:
    model = make_model(finetune_last_stages=1)
    for frozen in (model.encoder, model):
        model.requires_grad_(True)
        frozen.requires_grad_(False)
        model.train().eval().train()
        assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_where_the_stride_is(make_config: MakeConfig, stride_in_1x1: bool) -> None:
    model: Any
    with torch.device("meta"):
        model = Model(make_config(encoder_name="resnet50", stride_in_1x1=stride_in_1x1))
        grid = model.encoder(pixel_values=torch.zeros(1, 3, 64, 64)).last_hidden_state
    assert grid.shape == (1, 4, 2048)
    for stage in (5, 6, 7):
        block = model.encoder.resnet[stage][0]
        strided, plain = (block.conv1, block.conv2) if stride_in_1x1 else (block.conv2, block.conv1)
        assert (strided.stride, plain.stride) == ((2, 2), (1, 1))
        assert all(conv.stride == (1, 1) for b in model.encoder.resnet[stage][1:] for conv in (b.conv1, b.conv2))
    assert model.encoder.resnet[4][0].conv1.stride == model.encoder.resnet[4][0].conv2.stride == (1, 1)


def test_stride_in_1x1_does_not_touch_basic_blocks(make_model: MakeModel, pixel_values: torch.Tensor) -> None:
    features = [make_model(stride_in_1x1=choice).encoder(pixel_values=pixel_values)[0] for choice in (False, True)]
    assert torch.equal(*features)


# --- the encoder's weights ---


def test_missing_weights_only_are_initialised(make_model: MakeModel, tmp_path: Path) -> None:
    """`from_pretrained` of an incomplete checkpoint leaves what was loaded, and gives the rest sensible values."""
    model = make_model()
    model.save_pretrained(tmp_path)
    state = {
        k: v for k, v in model.state_dict().items() if k not in ("decoder.fcn.weight", "decoder.lstm_cell.bias_hh")
    }
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loading: Any = Model.from_pretrained
    loaded, info = loading(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"decoder.fcn.weight", "decoder.lstm_cell.bias_hh"}
    for name, value in loaded.state_dict().items():
        if name in state:
            assert torch.equal(value, state[name]), name
    bound = model.config.decoder_dim**-0.5
    for value in (loaded.decoder.fcn.weight, loaded.decoder.lstm_cell.bias_hh):
        assert 0 < value.abs().max() <= bound


# --- the loss ---


def test_label_smoothing_in_training_only(make_model: MakeModel, image_features: torch.Tensor) -> None:
    model = make_model(label_smoothing=0.2, dropout=0.0)
    output = model(image_features=image_features, labels=LABELS)
    log_p = output.logits.log_softmax(dim=-1)[LABELS != -100]
    right = log_p.gather(1, LABELS[LABELS != -100].unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(output.loss, -right.mean())
    smoothed = -(0.8 * right + 0.2 * log_p.mean(dim=1)).mean()
    torch.testing.assert_close(model.train()(image_features=image_features, labels=LABELS).loss, smoothed)
    assert abs(smoothed - output.loss) > 0.01


def test_doubly_stochastic_penalty_is_equation_14(make_model: MakeModel, image_features: torch.Tensor) -> None:
    model = make_model(doubly_stochastic_penalty=0.7, dropout=0.0)
    output = model(image_features=image_features, labels=LABELS)
    attentions = output.cross_attentions[0].squeeze(1).tolist()  # [caption][step][position]
    penalty = 0.0
    for caption, length in enumerate([5, 3, 4]):
        for position in range(4):
            looked = sum(attentions[caption][step][position] for step in range(length))
            penalty += (1 - looked) ** 2
    expected = output.loss.item() + 0.7 * penalty / 12  # 12 labels
    assert model.train()(image_features=image_features, labels=LABELS).loss.item() == pytest.approx(expected, rel=1e-5)
    assert penalty > 1


def test_an_empty_caption_costs_nothing(make_model: MakeModel, image_features: torch.Tensor) -> None:
    model = make_model(doubly_stochastic_penalty=1.0, dropout=0.0).train()
    labels = LABELS.clone()
    labels[2] = -100
    loss = model(image_features=image_features, labels=labels).loss
    torch.testing.assert_close(loss, model(image_features=image_features[:2], labels=labels[:2]).loss)
    empty = model(image_features=image_features, labels=torch.full_like(labels, -100)).loss
    assert empty == 0


@pytest.mark.parametrize("options", [{}, {"deep_output": True}])
def test_skip_logits_changes_no_number(
    make_model: MakeModel, image_features: torch.Tensor, options: dict[str, Any]
) -> None:
    model = make_model(dropout=0.0, label_smoothing=0.1, doubly_stochastic_penalty=1.0, **options).train()
    full = model(image_features=image_features, labels=LABELS, skip_logits=False)
    full.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    skipped = model(image_features=image_features, labels=LABELS, skip_logits=True)
    skipped.loss.backward()
    assert skipped.logits is None
    torch.testing.assert_close(skipped.loss, full.loss)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize("as_tensor", [False, True])
def test_losses_of_parts_add_up(make_model: MakeModel, image_features: torch.Tensor, as_tensor: bool) -> None:
    model = make_model(dropout=0.0, label_smoothing=0.1, doubly_stochastic_penalty=1.0).train()
    whole = model(image_features=image_features, labels=LABELS).loss
    number = torch.tensor(12) if as_tensor else 12
    parts = [
        model(image_features=image_features[rows], labels=LABELS[rows], num_items_in_batch=number).loss
        for rows in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


@pytest.mark.parametrize("options", [{}, {"context_gate": True, "deep_output": True}])
def test_several_captions_of_an_image(
    make_model: MakeModel, image_features: torch.Tensor, options: dict[str, Any]
) -> None:
    model = make_model(dropout=0.0, doubly_stochastic_penalty=1.0, **options).train()
    labels = torch.randint(5, model.config.vocab_size, (6, 5), generator=torch.Generator().manual_seed(3))
    shared = model(image_features=image_features, labels=labels, skip_logits=False)
    shared.loss.backward()
    got = gradients(model)
    model.zero_grad()
    images = image_features.repeat_interleave(2, dim=0)
    repeated = model(image_features=images, labels=labels, skip_logits=False)
    repeated.loss.backward()
    torch.testing.assert_close(shared.logits, repeated.logits)
    torch.testing.assert_close(shared.cross_attentions, repeated.cross_attentions)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(got[name], gradient)


@pytest.mark.parametrize("kind", ["dropout", "feature_dropout", "word_dropout"])
def test_dropout_acts_in_training_only(make_model: MakeModel, image_features: torch.Tensor, kind: str) -> None:
    model = make_model(**{"dropout": 0.0, kind: 0.5})
    losses = [model(image_features=image_features, labels=LABELS).loss.item() for _ in range(2)]
    assert losses[0] == losses[1]
    model.train()
    losses = [model(image_features=image_features, labels=LABELS).loss.item() for _ in range(2)]
    assert losses[0] != losses[1]


def test_what_feature_and_word_dropout_drop(make_model: MakeModel, image_features: torch.Tensor) -> None:
    """Whole channels of an image are dropped, the rest scaled up; whole words are dropped, the rest unchanged."""
    seen: dict[str, torch.Tensor] = {}
    model = make_model(dropout=0.0, feature_dropout=0.25, word_dropout=0.5).train()
    model.decoder.init_h.register_forward_pre_hook(lambda _, inputs: seen.update(mean=inputs[0]))
    model.decoder.attention.U.register_forward_pre_hook(lambda _, inputs: seen.update(grid=inputs[0]))
    model(image_features=image_features, labels=LABELS)
    shares = seen["grid"] / image_features  # (images, positions, channels)
    torch.testing.assert_close(shares, shares[:, :1].expand_as(shares))
    kept = shares[:, 0] > 0
    torch.testing.assert_close(shares[:, 0][kept], torch.full_like(shares[:, 0][kept], 1 / 0.75))
    assert 0.5 < kept.float().mean() < 0.95
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(seen["mean"] != 0, kept)  # the LSTM begins with the same channels

    words = torch.ones(64, 10, dtype=torch.long)
    model = make_model(dropout=0.0, deep_output=True, word_dropout=0.5).train()
    with torch.no_grad():
        (
            model.decoder.output_h.weight.zero_(),
            model.decoder.output_z.weight.zero_(),
            model.decoder.output_h.bias.zero_(),
        )
        outputs, *_ = model.decoder(image_features[:1].expand(64, -1, -1), words)
    blank = (outputs == 0).all(dim=-1)  # (captions, steps)
    assert 0.4 < blank.float().mean() < 0.6
    torch.testing.assert_close(outputs[~blank], torch.tanh(model.decoder.embedding(words))[~blank])


# --- the deferred gradient ---


def recurrence(linear: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, steps: int = 4) -> list[torch.Tensor]:
    states = [x]
    for _ in range(steps):
        states.append(torch.tanh(linear(states[-1])))
    return states


@pytest.mark.parametrize("has_bias", [True, False])
def test_deferred_gradient_is_right(has_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (3, 3), (3,)))
    inputs = (x, weight, bias) if has_bias else (x, weight)

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.stack(recurrence(recurrent_linear(*parameters), x)).sum(dim=0)

    assert torch.autograd.gradcheck(run, inputs)


def test_deferred_gradient_in_autocast() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(8, 16), torch.randn(16, 16) / 4, torch.randn(16)
    results = []
    for deferred in (False, True):
        parameters = [p.clone().requires_grad_() for p in (weight, bias)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            linear = recurrent_linear(*parameters) if deferred else lambda x, p=parameters: F.linear(x, *p)
            loss = recurrence(linear, x)[-1].float().square().sum()
        loss.backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in parameters)
        results.append(parameters)
    for plain, deferred_ in zip(*results, strict=True):
        torch.testing.assert_close(deferred_.grad, plain.grad, rtol=0.05, atol=0.05 * plain.grad.abs().max().item())


def test_deferred_gradient_belongs_to_one_backward_pass() -> None:
    """A pass for other gradients, or over some of the steps, does not affect the next one."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, requires_grad=True), torch.randn(3, 3, requires_grad=True)

    def weight_gradients(linear: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        states = recurrence(linear, x)
        torch.autograd.grad(states[-1].sum(), x, retain_graph=True)
        passes = [torch.autograd.grad(states[n].sum(), weight, retain_graph=True)[0] for n in (2, 4, 4)]
        return [*passes, torch.autograd.grad(states[3].sum(), x, retain_graph=True)[0]]

    expected = weight_gradients(lambda x: F.linear(x, weight))
    for got, right in zip(weight_gradients(recurrent_linear(weight)), expected, strict=True):
        torch.testing.assert_close(got, right)


def test_deferred_gradient_refuses_a_second_derivative() -> None:
    x, weight = torch.randn(2, 3, requires_grad=True), torch.randn(3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(recurrence(recurrent_linear(weight), x)[-1].sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_deferred_gradient_frees_its_memory() -> None:
    """Without waiting for the garbage collector: on an accelerator that would hold many batches' weights."""
    weight = torch.randn(3, 3, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        linear = recurrent_linear(weight)
        loss = recurrence(linear, torch.randn(2, 3))[-1].sum()
        node: Any = loss.grad_fn
        products = weakref.ref(node.next_functions[0][0].next_functions[0][0].products)
        loss.backward()
        assert products() is not None
        del loss, linear, node
        assert products() is None
    finally:
        gc.enable()


# --- the configuration ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_name": "vgg16"}, "encoder_name='vgg16' is unknown: it is one of resnet18, "),
        ({"encoder_dim": 2048}, "encoder_dim=2048 does not fit resnet18, whose features have 512 channels"),
        ({"finetune_last_stages": 5}, "finetune_last_stages=5 is not one of 0"),
        ({"finetune_last_stages": -1}, "finetune_last_stages=-1 is not one of 0"),
        ({"decoder_dim": 0}, "decoder_dim=0 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and less than 1"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1 must be at least 0 and less than 1"),
        ({"doubly_stochastic_penalty": -1.0}, "doubly_stochastic_penalty=-1.0 must not be negative"),
    ],
)
def test_config_errors(make_config: MakeConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_config_round_trip(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(encoder_name="resnet50", stride_in_1x1=True, finetune_last_stages=2, context_gate=True)
    config.save_pretrained(tmp_path)
    loaded = ShowAttendConfig.from_pretrained(tmp_path)
    assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
    assert (loaded.stride_in_1x1, loaded.finetune_last_stages, loaded.encoder_dim) == (True, 2, 2048)
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 2, 3)
    assert loaded.decoder_start_token_id == 2
