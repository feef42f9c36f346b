"""What users of transformers, peft, torch's quantisation and accelerate try with any model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertTokenizer, TorchAoConfig, Trainer, TrainingArguments

from modeling_showattend import ShowAttendConfig, ShowAttendForConditionalGeneration, ShowAttendProcessor
from modeling_showattend.modeling_showattend import STATE

Model = ShowAttendForConditionalGeneration
MakeModel = Callable[..., Any]
PAD, CLS, SEP = 0, 2, 3
LABELS = torch.tensor([[5, 6, 9, 11, 3], [7, 8, 3, -100, -100], [10, 5, 12, 3, -100]])
IDS = torch.tensor([[CLS, 5, 6, 9], [CLS, 7, 8, 11], [CLS, 10, 5, 12]])


@pytest.fixture
def model(make_model: MakeModel) -> Any:
    return make_model(seed=1, dropout=0.0, context_gate=True, deep_output=True)


@pytest.fixture
def expected(model: Any, image_features: torch.Tensor) -> dict[str, torch.Tensor]:
    return results(model, image_features)


def results(model: Any, image_features: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {
            "logits": model(image_features=image_features, decoder_input_ids=IDS, use_cache=False).logits,
            "cached": model(image_features=image_features, decoder_input_ids=IDS, use_cache=True).logits,
            "captions": model.generate(image_features=image_features, num_beams=3, max_length=10),
        }


def same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerances: Any) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, **tolerances)


# --- modules that were hooked, wrapped or replaced ---


def test_forward_hooks_see_every_module(model: Any, image_features: torch.Tensor, expected: dict[str, Any]) -> None:
    called: set[str] = set()
    for name, module in model.decoder.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: called.add(name))
    same(results(model, image_features), expected)
    assert called == {name for name, module in model.decoder.named_modules() if not list(module.children())}


@pytest.mark.parametrize("name", ["attention.W", "lstm_cell", "output_z"])
def test_a_hook_can_change_what_a_module_returns(model: Any, image_features: torch.Tensor, name: str) -> None:
    features, ids = image_features, IDS
    before = model(image_features=features, decoder_input_ids=ids, use_cache=True).logits

    def halved(_: Any, __: Any, output: Any) -> Any:
        return tuple(part / 2 for part in output) if isinstance(output, tuple) else output / 2

    hook = model.decoder.get_submodule(name).register_forward_hook(halved)
    after = [model(image_features=features, decoder_input_ids=ids, use_cache=cached).logits for cached in (True, False)]
    assert not torch.allclose(after[0], before)
    torch.testing.assert_close(after[0], after[1])
    hook.remove()
    torch.testing.assert_close(model(image_features=features, decoder_input_ids=ids).logits, before)


@pytest.mark.parametrize("names", [["U", "W", "A", "fcn"], ["init_h", "init_c", "f_beta", "output_h", "output_z"]])
def test_lora_trains_every_layer_that_is_named(model: Any, image_features: torch.Tensor, names: list[str]) -> None:
    peft = pytest.importorskip("peft")
    plain = results(model, image_features)
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=names, r=2, init_lora_weights=False))
    lora.train()
    lora(image_features=image_features, labels=LABELS).loss.backward()
    gradients = {name: p.grad for name, p in lora.named_parameters() if p.requires_grad}
    assert len(gradients) == 2 * len(names)
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []

    lora.eval()
    adapted = results(lora, image_features)
    assert not torch.allclose(adapted["logits"], plain["logits"])
    same(results(lora.merge_and_unload(), image_features), adapted, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dynamic_quantisation(model: Any, image_features: torch.Tensor, expected: dict[str, Any]) -> None:
    if not torch.backends.quantized.supported_engines:
        pytest.skip("this torch cannot quantise on this machine")
    linear = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear, torch.nn.LSTMCell})
    for smaller in (linear, quantized):
        logits = results(smaller, image_features)["logits"]
        assert 0 < (logits - expected["logits"]).norm() / expected["logits"].norm() < 0.3


@pytest.mark.parametrize("on_loading", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_int8_by_torchao(
    model: Any, image_features: torch.Tensor, expected: dict[str, Any], tmp_path: Path, on_loading: bool
) -> None:
    torchao = pytest.importorskip("torchao.quantization")  # constraints.txt says why it may be missing
    names = {"attention.W", "attention.U", "attention.A", "init_h", "f_beta", "output_h"}
    int8 = torchao.Int8WeightOnlyConfig()
    if on_loading:
        model.save_pretrained(tmp_path)
        model = Model.from_pretrained(tmp_path, quantization_config=TorchAoConfig(int8))
    else:
        torchao.quantize_(model, int8)
    weights = {name: model.decoder.get_submodule(name).weight.data for name in names}
    assert [name for name, weight in weights.items() if type(weight) is torch.Tensor] == []
    got = results(model, image_features)
    for name in ("logits", "cached"):
        assert 0 < (got[name] - expected[name]).norm() / expected[name].norm() < 0.1
    torch.testing.assert_close(got["cached"], got["logits"])
    assert got["captions"].shape[0] == len(image_features)


@pytest.mark.parametrize("offloaded", ["encoder", "decoder"])
def test_a_part_can_be_offloaded_to_disk(
    make_model: MakeModel, pixel_values: torch.Tensor, tmp_path: Path, offloaded: str
) -> None:
    model = make_model(seed=1, context_gate=True, deep_output=True)
    model.save_pretrained(tmp_path)
    devices = {"encoder": "cpu", "decoder": "cpu"} | {offloaded: "disk"}
    loaded = Model.from_pretrained(tmp_path, device_map=devices, offload_folder=tmp_path / "offload")
    assert all(p.is_meta for p in loaded.get_submodule(offloaded).parameters())
    for num_beams in (1, 3):
        got = loaded.generate(pixel_values, num_beams=num_beams)
        assert torch.equal(got, model.generate(pixel_values, num_beams=num_beams))


# --- generate ---


def test_stop_strings(model: Any, image_features: torch.Tensor, processor: ShowAttendProcessor) -> None:
    letters = [*"abcdef", *(f"##{letter}" for letter in "abcdef")]  # transformers tries "abcdef" on the tokenizer
    vocabulary = [*processor.tokenizer.convert_ids_to_tokens(list(range(24))), *letters]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(dict.fromkeys(vocabulary))})
    plain = model.generate(image_features=image_features[:1], max_length=12)
    words = tokenizer.convert_ids_to_tokens(plain[0, 1:])
    word = next(word for word in words[1:] if word.isalpha() and word != words[0])
    stopped = model.generate(image_features=image_features[:1], max_length=12, stop_strings=[word], tokenizer=tokenizer)
    assert torch.equal(stopped, plain[:, : words.index(word) + 2])


def test_an_empty_batch_is_refused(model: Any, pixel_values: torch.Tensor, image_features: torch.Tensor) -> None:
    empty = image_features[:0]
    for batch in ({"pixel_values": pixel_values[:0]}, {"image_features": empty}, {"encoder_outputs": (empty,)}):
        with pytest.raises(ValueError, match="no image to caption"):
            model.generate(**batch)
    with pytest.raises(ValueError, match="among 0 images"):
        model(image_features=empty, decoder_input_ids=IDS)


def test_steps_cannot_be_taken_back(model: Any, image_features: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="not supported with stateful models"):
        model.generate(image_features=image_features[:1], prompt_lookup_num_tokens=2)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("options", [{}, {"use_cache": False}])
def test_a_caption_is_continued_from_its_state(
    model: Any, image_features: torch.Tensor, name: str, options: dict[str, Any]
) -> None:
    options = options | {"image_features": image_features, "suppress_tokens": [PAD, SEP]}
    whole = model.generate(max_length=9, **options)
    first = model.generate(max_length=4, return_dict_in_generate=True, **options | {"use_cache": True})
    assert first[STATE].get_seq_length() == 3
    continued = model.generate(decoder_input_ids=first.sequences, max_length=9, **options, **{name: first[STATE]})
    assert torch.equal(continued, whole)


def test_a_state_is_continued_by_its_own_caption_alone(model: Any, image_features: torch.Tensor) -> None:
    options: dict[str, Any] = {"max_length": 4, "return_dict_in_generate": True, "suppress_tokens": [PAD, SEP]}
    first = model.generate(image_features=image_features, **options)

    def refused(message: str, ids: torch.Tensor | None, output: Any = first, features: Any = image_features) -> None:
        more = {"max_length": 12} if ids is None else {"max_length": 12, "decoder_input_ids": ids}
        with pytest.raises(ValueError, match=message):
            model.generate(image_features=features, **more, **{STATE: output[STATE]})

    refused("longer than the 3 tokens already read", None)
    refused("longer than the 3 tokens already read", first.sequences[:, -1:])
    refused("do not begin with the 3 tokens", first.sequences.roll(1, dims=0))
    refused("do not begin with the 3 tokens", first.sequences[:2], features=image_features[:2])
    beams = model.generate(image_features=image_features, num_beams=3, **options)
    refused("state of a beam search", beams.sequences, beams)
    samples = model.generate(image_features=image_features, do_sample=True, num_return_sequences=2, **options)
    refused("6 prefixes for 3 images", samples.sequences, samples)
    with pytest.raises(ValueError, match="3 captions of 3 images, but 1 captions of 1 images"):
        model(image_features=image_features[:1], decoder_input_ids=IDS[:1], **{STATE: first[STATE]})


def test_masks_that_tools_add(model: Any, image_features: torch.Tensor, pixel_values: torch.Tensor) -> None:
    padded = torch.cat([IDS, torch.zeros_like(IDS)], dim=1)
    mask = (padded != 0).long()
    masks = {"attention_mask": torch.ones(3, 4), "decoder_attention_mask": mask}
    logits = model(image_features=image_features, decoder_input_ids=padded, **masks).logits
    torch.testing.assert_close(logits[:, :4], model(image_features=image_features, decoder_input_ids=IDS).logits)
    with pytest.raises(ValueError, match="masks tokens before unmasked ones"):
        model(image_features=image_features, decoder_input_ids=padded, decoder_attention_mask=1 - mask)

    plain = model.generate(pixel_values)
    ones = torch.ones(2, 2)
    assert torch.equal(model.generate(pixel_values, attention_mask=ones), plain)
    prefix: Any = {"decoder_input_ids": IDS[:2, :2]}
    with_mask = model.generate(pixel_values, num_beams=2, decoder_attention_mask=ones, **prefix)
    assert torch.equal(with_mask, model.generate(pixel_values, num_beams=2, **prefix))
    with pytest.raises(ValueError, match="hold padding"):
        model.generate(pixel_values, decoder_attention_mask=torch.tensor([[1, 1], [1, 0]]), **prefix)


# --- training ---


def test_skip_logits_is_the_default_of_training_with_labels(model: Any, image_features: torch.Tensor) -> None:
    assert model(image_features=image_features, labels=LABELS).logits is not None
    model.train()
    assert model(image_features=image_features, labels=LABELS).logits is None
    assert model(image_features=image_features, labels=LABELS, skip_logits=False).logits.shape[:2] == (3, 5)
    assert model(image_features=image_features, decoder_input_ids=IDS).logits.shape[:2] == (3, 4)


def test_trainer_computes_the_logits_of_labels_alone(model: Any, image_features: torch.Tensor, tmp_path: Path) -> None:
    rows: list[int] = []  # without those of zeros, which round their number up
    model.decoder.fcn.register_forward_hook(
        lambda _, inputs, __: rows.append(int(inputs[0].flatten(0, -2).any(dim=-1).sum()))
    )
    batch = [{"image_features": image_features[row], "labels": LABELS[row]} for row in range(3)]
    settings: Any = dict(output_dir=str(tmp_path), max_steps=1, report_to=[], save_strategy="no", use_cpu=True)
    trainer = Trainer(model, TrainingArguments(per_device_train_batch_size=3, **settings), train_dataset=batch)
    trainer.train()
    assert rows == [12]  # labels, and not 15 with padding


def test_embeddings_can_be_resized(model: Any, image_features: torch.Tensor) -> None:
    before = model(image_features=image_features, decoder_input_ids=IDS).logits
    model.resize_token_embeddings(30)
    after = model(image_features=image_features, decoder_input_ids=IDS).logits
    assert after.shape == (3, 4, 30) and model.config.vocab_size == 30
    torch.testing.assert_close(after[..., :24], before)
    ids = torch.tensor([[CLS, 29]] * 3)
    assert model(image_features=image_features, decoder_input_ids=ids).logits.isfinite().all()


# --- configuration and processor ---


def test_config_answers_to_the_usual_sizes(make_config: Callable[..., ShowAttendConfig], tmp_path: Path) -> None:
    config: Any = make_config()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (config.decoder_dim, 1, 1)
    config.hidden_size = 24
    assert config.decoder_dim == 24
    config.save_pretrained(tmp_path)
    assert "num_hidden_layers" not in (tmp_path / "config.json").read_text()
    with pytest.raises(NotImplementedError, match="one LSTM cell"):
        config.num_hidden_layers = 2


def test_config_fields_have_types(make_config: Callable[..., ShowAttendConfig]) -> None:
    with pytest.raises(Exception, match="decoder_dim"):
        make_config(decoder_dim="16")


def test_processor_takes_arguments_in_groups(processor: ShowAttendProcessor) -> None:
    image, caption = torch.rand(3, 50, 40), "a dog runs on the grass"
    flat = processor(image, text_target=caption, max_length=4, do_normalize=False, return_tensors="pt")
    grouped = processor(
        image,
        text_target=caption,
        images_kwargs={"do_normalize": False},
        text_kwargs={"max_length": 4},
        common_kwargs={"return_tensors": "pt"},
    )
    assert torch.equal(flat["pixel_values"], grouped["pixel_values"])
    assert torch.equal(flat["labels"], grouped["labels"])
    assert flat["labels"].shape == (1, 3)
    mixed = processor(
        image, text_target=caption, return_tensors="pt", do_normalize=False, text_kwargs={"max_length": 4}
    )
    assert torch.equal(flat["pixel_values"], mixed["pixel_values"]) and torch.equal(flat["labels"], mixed["labels"])
    with pytest.raises(ValueError, match="max_length was given by itself and in text_kwargs"):
        processor(text_target=caption, max_length=4, text_kwargs={"max_length": 5})
    padded = processor(text_target=["a dog"], text_kwargs={"padding": "max_length", "max_length": 6})
    assert padded["labels"] == [[5, 6, SEP, -100, -100]]


@pytest.mark.parametrize(
    "arguments",
    [
        {"text": "a dog", "do_resise": False},
        {"text": "a dog", "images_kwargs": {"do_resise": False}},
        {"text_target": "a dog", "text_kwargs": {"do_resise": 5}},
        {"images": torch.rand(3, 50, 40), "do_resise": False},
        {"images": torch.rand(3, 50, 40), "common_kwargs": {"do_resise": False}},
    ],
)
def test_processor_refuses_unknown_arguments(processor: ShowAttendProcessor, arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="unexpected argument 'do_resise'"):
        processor(**arguments)
