from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from showattend.data.batches import Batch
from showattend.metrics import CiderDReward
from showattend.training.self_critical import policy_gradient_loss, sample_captions

MakeModel = Callable[..., ShowAttendForConditionalGeneration]
PAD, CLS, SEP = 0, 2, 3


class CountDogs(CiderDReward):
    """A reward for mentioning dogs, which records its calls."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], list[str]]] = []

    def reward(self, image_ids: Sequence[str], captions: Sequence[str]) -> NDArray[np.float32]:
        self.asked.append((list(image_ids), list(captions)))
        return np.array([caption.split().count("dog") for caption in captions], np.float32)


@pytest.fixture
def batch(image_features: torch.Tensor) -> Batch:
    return Batch({"image_features": image_features}, torch.empty(0), ["a.jpg", "b.jpg", "c.jpg"])


@pytest.mark.parametrize("training", [True, False])
def test_samples(make_model: MakeModel, processor: ShowAttendProcessor, batch: Batch, training: bool) -> None:
    model = make_model(seed=1).train(training)
    model.generation_config.no_repeat_ngram_size = 1  # would change the distribution that is sampled from
    reward = CountDogs()
    torch.manual_seed(0)
    labels, _, mean_reward = sample_captions(model, processor, batch, reward, 20, "samples", max_length=9)
    assert model.training == training
    assert labels.shape[0] == 60 and labels.shape[1] <= 8
    ends = 0
    for row in labels.tolist():
        caption = row[: row.index(SEP) + 1] if SEP in row else row
        assert -100 not in caption
        assert row[len(caption) :] == [-100] * (len(row) - len(caption))
        ends += SEP in row
    assert 0 < ends < 60  # some ended with [SEP], others were cut
    assert len({tuple(row) for row in labels[:20].tolist()}) > 10
    assert any(len(set(row) - {-100}) < len([token for token in row if token != -100]) for row in labels.tolist())
    ((ids, captions),) = reward.asked
    assert ids == ["a.jpg"] * 20 + ["b.jpg"] * 20 + ["c.jpg"] * 20
    tokens = labels.masked_fill(labels == -100, PAD)
    assert captions == processor.batch_decode(tokens, skip_special_tokens=True)
    assert mean_reward == pytest.approx(np.mean([caption.split().count("dog") for caption in captions]))


def test_samples_come_from_the_models_own_distribution(
    make_model: MakeModel, processor: ShowAttendProcessor, batch: Batch
) -> None:
    """All of it, whatever the checkpoint's settings are; by default, `generate` cuts off the tail."""
    model = make_model(seed=1)
    model.generation_config.update(top_k=3, top_p=0.5, temperature=0.5)
    one = Batch({"image_features": batch.inputs["image_features"][:1]}, batch.labels, ["a.jpg"])
    torch.manual_seed(0)
    labels, *_ = sample_captions(model, processor, one, CountDogs(), 20_000, "samples", max_length=2)
    measured = torch.bincount(labels[:, 0], minlength=model.config.vocab_size) / len(labels)
    with torch.no_grad():
        logits = model(**one.inputs, decoder_input_ids=torch.tensor([[CLS]])).logits[0, 0]
    torch.testing.assert_close(measured, logits.softmax(dim=-1), rtol=0, atol=0.015)


def test_advantage_over_the_greedy_caption(make_model: MakeModel, processor: ShowAttendProcessor, batch: Batch) -> None:
    model = make_model(seed=1).train()  # with dropout, which neither samples nor greedy captions see
    reward = CountDogs()
    _, advantages, mean_reward = sample_captions(model, processor, batch, reward, 8, "greedy", max_length=9)
    (_, captions), (ids, greedy) = reward.asked
    assert ids == batch.image_ids
    expected = model.eval().generate(**batch.inputs, max_length=9)
    assert greedy == processor.batch_decode(expected, skip_special_tokens=True)
    dogs = [caption.split().count("dog") for caption in captions]
    compared_with = [caption.split().count("dog") for caption in greedy for _ in range(8)]
    assert advantages.tolist() == [sample - other for sample, other in zip(dogs, compared_with, strict=True)]
    assert mean_reward == pytest.approx(np.mean(dogs))
    assert len(set(dogs)) > 1


def test_advantage_over_the_other_samples(make_model: MakeModel, processor: ShowAttendProcessor, batch: Batch) -> None:
    reward = CountDogs()
    torch.manual_seed(0)
    _, advantages, _ = sample_captions(make_model(seed=1), processor, batch, reward, 4, "samples", max_length=9)
    ((_, captions),) = reward.asked
    dogs = [caption.split().count("dog") for caption in captions]
    for image in range(3):
        of_image = dogs[4 * image : 4 * image + 4]
        expected = [of_image[i] - (sum(of_image) - of_image[i]) / 3 for i in range(4)]
        torch.testing.assert_close(advantages[4 * image : 4 * image + 4], torch.tensor(expected))
    assert len(set(dogs)) > 1


def test_policy_gradient_by_hand() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, requires_grad=True)
    labels = torch.tensor([[1, 3, -100], [4, 2, 3]])
    advantages = torch.tensor([2.0, -0.5])
    policy_gradient_loss(logits, labels, advantages).backward()
    probabilities = logits.detach().softmax(dim=-1)
    expected = advantages[:, None, None] * (probabilities - F.one_hot(labels.clamp(min=0), 5))
    expected[0, 2] = 0
    torch.testing.assert_close(logits.grad, expected)


def test_better_captions_become_more_likely(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(dropout=0.0)
    labels = torch.tensor([[5, 6, SEP], [7, SEP, -100], [8, 9, 10]])
    advantages = torch.tensor([1.0, -1.0, 0.0])
    optimizer = torch.optim.SGD(model.decoder.parameters(), lr=0.01)

    def likelihoods() -> torch.Tensor:
        inputs = model.prepare_decoder_input_ids_from_labels(labels)
        logits = model(**batch.inputs, decoder_input_ids=inputs).logits
        policy_gradient_loss(logits, labels, advantages).backward()
        return -F.cross_entropy(logits.detach().transpose(1, 2), labels, reduction="none").sum(dim=1)

    before = likelihoods()
    optimizer.step()
    after = likelihoods()
    assert after[0] > before[0] and after[1] < before[1]


@pytest.mark.parametrize("baseline", ["greedy", "samples"])
def test_reward_rises(make_model: MakeModel, processor: ShowAttendProcessor, batch: Batch, baseline: str) -> None:
    model = make_model(seed=1, dropout=0.0)
    optimizer = torch.optim.Adam(model.decoder.parameters(), lr=0.01)
    torch.manual_seed(0)
    means = []
    for _ in range(30):
        labels, advantages, mean = sample_captions(model, processor, batch, CountDogs(), 10, baseline, max_length=9)
        inputs = model.prepare_decoder_input_ids_from_labels(labels)
        logits = model(**batch.inputs, decoder_input_ids=inputs).logits
        (policy_gradient_loss(logits, labels, advantages) / (labels != -100).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        means.append(mean)
    assert np.mean(means[-5:]) > np.mean(means[:5]) + 1
