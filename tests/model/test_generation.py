"""`generate`, the library's own, on this decoder: against plain loops, exhaustive search and teacher forcing."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GenerationMixin, TextIteratorStreamer, TextStreamer
from transformers.cache_utils import Cache
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import BaseModelOutput

from modeling_showattend import ShowAttendForConditionalGeneration
from modeling_showattend.modeling_showattend import generated_attentions

Model = ShowAttendForConditionalGeneration
MakeModel = Callable[..., Any]
CLS, SEP, PAD = 2, 3, 0


@pytest.fixture
def model(make_model: MakeModel) -> Any:
    return make_model(seed=1, context_gate=True, deep_output=True)


def log_probs(model: Any, features: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log probabilities of the next tokens, (captions, steps, vocab_size), from one pass without a cache."""
    with torch.no_grad():
        return model(image_features=features, decoder_input_ids=ids, use_cache=False).logits.log_softmax(dim=-1)


def greedy(model: Any, features: torch.Tensor, max_length: int) -> list[int]:
    """One caption, without a cache: the whole caption is read again for every token."""
    ids = [CLS]
    while len(ids) < max_length and ids[-1] != SEP:
        ids.append(int(log_probs(model, features, torch.tensor([ids]))[0, -1].argmax()))
    return ids


def trimmed(ids: torch.Tensor) -> list[int]:
    """A caption up to its [SEP]."""
    tokens = ids.tolist()
    return tokens[: tokens.index(SEP) + 1] if SEP in tokens else tokens


def test_generate_is_inherited(model: Any, image_features: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[dict[str, Any]] = []
    inherited = GenerationMixin.generate

    def recorded(self: Any, *args: Any, **options: Any) -> Any:
        called.append(options)
        return inherited(self, *args, **options)

    monkeypatch.setattr(GenerationMixin, "generate", recorded)
    model.generate(image_features=image_features, num_beams=2)
    assert called[0]["num_beams"] == 2


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedy(make_model: MakeModel, image_features: torch.Tensor, use_cache: bool, seed: int) -> None:
    model = make_model(seed)
    captions = model.generate(image_features=image_features, use_cache=use_cache, max_length=12)
    expected = [greedy(model, image_features[row : row + 1], 12) for row in range(3)]
    assert [trimmed(caption) for caption in captions] == expected
    assert len({tuple(caption) for caption in expected}) > 1  # the image matters
    assert all(
        token == PAD for caption, right in zip(captions, expected, strict=True) for token in caption[len(right) :]
    )


def test_default_length(model: Any, image_features: torch.Tensor) -> None:
    assert model.generate(image_features=image_features, suppress_tokens=[SEP]).shape == (3, 30)


def exhaustive(
    model: Any, features: torch.Tensor, max_length: int, length_penalty: float
) -> list[tuple[float, list[int]]]:
    """All captions of one image and their scores, best first."""
    vocabulary = range(model.config.vocab_size)
    words = [word for word in vocabulary if word != SEP]
    steps = max_length - 1
    prefixes = torch.tensor([[CLS, *tokens] for tokens in itertools.product(words, repeat=steps - 1)])
    table = log_probs(model, features, prefixes)  # (prefixes, steps, vocab_size)
    scores: dict[tuple[int, ...], float] = {}
    for prefix, row in zip(prefixes.tolist(), table.tolist(), strict=True):
        total = 0.0
        for step in range(steps):
            scores[(*prefix[: step + 1], SEP)] = (total + row[step][SEP]) / (step + 1) ** length_penalty
            if step == steps - 1:
                for word in words:
                    scores[(*prefix, word)] = (total + row[step][word]) / steps**length_penalty
            else:
                total += row[step][prefix[step + 1]]
    return sorted(((score, list(caption)) for caption, score in scores.items()), reverse=True)


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_beam_search_finds_the_best_of_all_captions(
    make_model: MakeModel, image_features: torch.Tensor, length_penalty: float, seed: int
) -> None:
    model = make_model(seed, vocab_size=6, context_gate=True)
    num_beams = 5**3  # every prefix of three words
    output = model.generate(
        image_features=image_features,
        num_beams=num_beams,
        num_return_sequences=10,
        max_length=5,
        length_penalty=length_penalty,
        # Stop when no running beam can still overtake, not when there are num_beams finished captions.
        early_stopping="never",
        return_dict_in_generate=True,
        output_scores=True,
    )
    captions = output.sequences.unflatten(0, (3, 10))
    scores = output.sequences_scores.unflatten(0, (3, 10))
    for row in range(3):
        best = exhaustive(model, image_features[row : row + 1], 5, length_penalty)[:10]
        assert [trimmed(caption) for caption in captions[row]] == [caption for _, caption in best]
        torch.testing.assert_close(scores[row], torch.tensor([score for score, _ in best]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_beams", [2, 3, 5])
def test_beam_search_with_and_without_cache(model: Any, image_features: torch.Tensor, num_beams: int) -> None:
    options: dict[str, Any] = {
        "image_features": image_features,
        "num_beams": num_beams,
        "num_return_sequences": num_beams,
        "max_length": 12,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    cached, plain = model.generate(**options), model.generate(**options, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(cached.sequences_scores, plain.sequences_scores)
    # Beams did overtake each other; otherwise this would hold without reordering.
    moved = cached.beam_indices[:, 1:]
    assert (moved[moved >= 0] % num_beams).unique().numel() > 1


def test_beam_search_needs_the_reordering(
    model: Any, image_features: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"num_beams": 3, "max_length": 12}
    right = model.generate(image_features=image_features, **options)
    monkeypatch.setattr(Cache, "reorder_cache", lambda self, beam_idx: None)
    wrong = model.generate(image_features=image_features, **options)
    assert right.shape != wrong.shape or not torch.equal(right, wrong)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_batch_equals_its_members(model: Any, image_features: torch.Tensor, num_beams: int) -> None:
    """Also where one caption ends long before another."""
    options: dict[str, Any] = {"num_beams": num_beams, "num_return_sequences": num_beams, "max_length": 15}
    batch = model.generate(image_features=image_features, **options).unflatten(0, (3, num_beams))
    for row in range(3):
        alone = model.generate(image_features=image_features[row : row + 1], **options)
        assert [trimmed(ids) for ids in batch[row]] == [trimmed(ids) for ids in alone]
    assert len({len(trimmed(ids)) for ids in batch.flatten(0, 1)}) > 1


@pytest.mark.parametrize("num_beams", [1, 3])
def test_prefix(model: Any, image_features: torch.Tensor, num_beams: int) -> None:
    prefix = [5, 17]
    given = torch.tensor([[CLS, *prefix]] * 3)
    captions = model.generate(
        image_features=image_features, decoder_input_ids=given, num_beams=num_beams, max_length=10
    )
    assert torch.equal(captions[:, :3], given)

    def force(_: int, ids: torch.Tensor) -> list[int]:
        return prefix[len(ids) - 1 : len(ids)] if len(ids) <= len(prefix) else list(range(model.config.vocab_size))

    # The same words, but chosen one by one: forced tokens change the score and so the length-normalised ranking,
    # which a length penalty of 0 leaves out.
    options: dict[str, Any] = {"num_beams": num_beams, "max_length": 10, "length_penalty": 0.0}
    options = options if num_beams > 1 else {"max_length": 10}
    at_once = model.generate(image_features=image_features, decoder_input_ids=given, **options)
    forced = model.generate(image_features=image_features, prefix_allowed_tokens_fn=force, **options)
    assert [trimmed(ids) for ids in at_once] == [trimmed(ids) for ids in forced]
    without_cls = model.generate(image_features=image_features, decoder_input_ids=given[:, 1:], **options)
    assert torch.equal(without_cls, at_once)


def test_sampling(model: Any, image_features: torch.Tensor) -> None:
    """Samples follow the model's distribution: the first token's frequencies are its probabilities."""
    torch.manual_seed(0)
    number = 2000
    captions = model.generate(
        image_features=image_features[:1], do_sample=True, num_return_sequences=number, max_length=3, top_k=0
    )
    assert captions.shape == (number, 3)
    expected = log_probs(model, image_features[:1], torch.tensor([[CLS]]))[0, 0].exp()
    frequencies = torch.bincount(captions[:, 1], minlength=len(expected)) / number
    assert (frequencies - expected).abs().max() < 0.05
    assert expected.max() < 0.9
    # ... and the second's, given the most frequent first one
    first = int(expected[[*range(3), *range(4, len(expected))]].argmax())
    first += first >= SEP
    after = captions[captions[:, 1] == first, 2]
    expected = log_probs(model, image_features[:1], torch.tensor([[CLS, first]]))[0, 1].exp()
    assert (torch.bincount(after, minlength=len(expected)) / len(after) - expected).abs().max() < 0.12


def test_samples_are_of_their_own_image(model: Any, image_features: torch.Tensor) -> None:
    """At a temperature near 0 a sample is the greedy caption, for each image and each of its captions."""
    expected = model.generate(image_features=image_features, max_length=10)
    options: dict[str, Any] = {"do_sample": True, "temperature": 1e-4, "num_return_sequences": 3, "max_length": 10}
    samples = model.generate(image_features=image_features, **options)
    assert torch.equal(samples, expected.repeat_interleave(3, dim=0))
    beam_samples = model.generate(image_features=image_features, num_beams=3, **{**options, "temperature": 1.0})
    assert beam_samples.shape[0] == 9
    assert len({tuple(ids) for ids in beam_samples.tolist()}) > 3


def test_scores_are_the_models(model: Any, image_features: torch.Tensor) -> None:
    """`sequences_scores` and `scores` of beams are the log probabilities that one plain pass gives their captions."""
    output = model.generate(
        image_features=image_features,
        num_beams=4,
        num_return_sequences=2,
        max_length=10,
        length_penalty=1.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    transitions = model.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
    for row, ids in enumerate(output.sequences):
        caption = torch.tensor([trimmed(ids)])
        table = log_probs(model, image_features[row // 2 : row // 2 + 1], caption[:, :-1])
        steps = table.gather(2, caption[:, 1:, None])[0, :, 0]
        torch.testing.assert_close(output.sequences_scores[row], steps.mean(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(transitions[row, : len(steps)], steps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4},
        {"num_beams": 4, "num_return_sequences": 3},
        {"num_beams": 3, "do_sample": True},
        {"do_sample": True, "num_return_sequences": 2},
        {"num_beams": 4, "decoder_input_ids": torch.tensor([[CLS, 5, 17]] * 3)},
        {"decoder_input_ids": torch.tensor([[CLS, 5, 17]] * 3)},
    ],
)
def test_generated_attentions(model: Any, image_features: torch.Tensor, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    output = model.generate(
        image_features=image_features,
        max_length=12,
        return_dict_in_generate=True,
        output_attentions=True,
        **options,
    )
    attentions = generated_attentions(output)
    each = options.get("num_return_sequences", 1)
    given = options["decoder_input_ids"].shape[1] if "decoder_input_ids" in options else 1
    assert attentions.shape == (3 * each, output.sequences.shape[1] - given, 4)
    for row, ids in enumerate(output.sequences):
        caption = trimmed(ids)
        with torch.no_grad():
            expected = model(
                image_features=image_features[row // each : row // each + 1],
                decoder_input_ids=torch.tensor([caption[:-1]]),
            ).cross_attentions[0][0, 0, given - 1 :]
        torch.testing.assert_close(attentions[row, : len(expected)], expected)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_logits_processors(model: Any, image_features: torch.Tensor, num_beams: int) -> None:
    def captions(**options: Any) -> list[list[int]]:
        ids = model.generate(image_features=image_features, num_beams=num_beams, max_length=12, **options)
        return [trimmed(caption) for caption in ids]

    plain = captions()
    assert captions(min_length=9) != plain
    assert all(len(caption) >= 9 for caption in captions(min_length=9))
    banned = plain[0][1]
    assert all(banned not in caption for caption in captions(bad_words_ids=[[banned]]))
    without_end = captions(suppress_tokens=[SEP])

    def has_repeated_pair(caption: list[int]) -> bool:
        pairs = list(itertools.pairwise(caption))
        return len(set(pairs)) < len(pairs)

    assert any(has_repeated_pair(caption) for caption in without_end)
    assert not any(map(has_repeated_pair, captions(suppress_tokens=[SEP], no_repeat_ngram_size=2)))
    assert captions(repetition_penalty=5.0) != plain
    assert all(len(caption) <= 4 for caption in captions(max_new_tokens=3))


class Collected(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_streamers(model: Any, image_features: torch.Tensor, processor: Any, capsys: Any) -> None:
    streamer = Collected()
    expected = model.generate(image_features=image_features[:1], streamer=streamer, max_length=10)
    assert streamer.tokens == expected[0].tolist()
    assert streamer.ended
    text = processor.tokenizer.decode(expected[0], skip_special_tokens=True)
    model.generate(
        image_features=image_features[:1],
        streamer=TextStreamer(processor.tokenizer, skip_special_tokens=True),
        max_length=10,
    )
    assert capsys.readouterr().out.strip() == text
    iterator = TextIteratorStreamer(processor.tokenizer, skip_special_tokens=True)
    model.generate(image_features=image_features[:1], streamer=iterator, max_length=10)
    assert "".join(iterator).strip() == text


def test_encoder_outputs_of_the_caller_stay(model: Any, image_features: torch.Tensor) -> None:
    encoded = BaseModelOutput(last_hidden_state=image_features)
    for options in ({}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 4}):
        model.generate(encoder_outputs=encoded, max_length=6, **options)
        assert encoded.last_hidden_state is image_features
        assert encoded.keys() == {"last_hidden_state"}
        assert image_features.shape == (3, 4, 512)
    first = model.generate(encoder_outputs=encoded, num_beams=3)
    assert torch.equal(first, model.generate(encoder_outputs=encoded, num_beams=3))


def test_encoder_runs_once(make_model: MakeModel, pixel_values: torch.Tensor) -> None:
    model = make_model()
    batches: list[int] = []
    model.encoder.register_forward_pre_hook(
        lambda _, __, given: batches.append(len(given["pixel_values"])), with_kwargs=True
    )
    model.generate(pixel_values, num_beams=3, max_length=8)
    assert batches == [2]


def test_unknown_arguments_are_refused(model: Any, image_features: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="num_beems"):
        model.generate(image_features=image_features, num_beems=3)


def test_generation_config_is_followed(model: Any, image_features: torch.Tensor, tmp_path: Any) -> None:
    expected = model.generate(image_features=image_features, num_beams=3, max_length=7)
    model.generation_config.num_beams = 3
    model.generation_config.max_length = 7
    model.save_pretrained(tmp_path)
    loaded = Model.from_pretrained(tmp_path)
    assert torch.equal(loaded.generate(image_features=image_features), expected)


def test_no_graph_is_kept(model: Any, image_features: torch.Tensor) -> None:
    output = model.train().generate(
        image_features=image_features, return_dict_in_generate=True, output_scores=True, max_length=5
    )
    assert not any(score.requires_grad for score in output.scores)
