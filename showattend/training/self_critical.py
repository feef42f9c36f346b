"""Self-critical sequence training (Rennie et al., 2017, https://arxiv.org/abs/1612.00563).

Cross entropy trains on the next token of reference captions, while metrics score whole generated captions. So captions
are sampled: those that score above a baseline become more likely, the others less.
"""

from typing import Any

import torch
from torch.nn import functional as F

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from showattend.data.batches import Batch
from showattend.metrics import CiderDReward


@torch.no_grad()
def sample_captions(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    batch: Batch,
    reward: CiderDReward,
    samples: int,
    baseline: str,
    max_length: int,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Sample captions, and measure how much better than the baseline each is.

    Args:
        model: The captioner, unwrapped.
        batch: Images on the model's device; its labels are ignored.
        samples: The number of captions to sample per image.
        baseline: `greedy`, the reward of the image's greedy caption (the paper's), or `samples`, the mean reward of
            its other samples (Luo, 2020, https://arxiv.org/abs/2003.09971).

    Returns:
        The samples as labels (images * samples, steps), their advantages (images * samples,), and the mean reward.
    """
    training = model.training
    model.eval()  # sample and reward without dropout, as in generation
    encoded = model.encoder(**batch.inputs)
    # Whatever the checkpoint's generation config says:
    settings: dict[str, Any] = dict(max_length=max_length, num_beams=1, no_repeat_ngram_size=0)
    whole: dict[str, Any] = dict(do_sample=True, top_k=0, top_p=1.0, temperature=1.0)
    sampled = model.generate(encoder_outputs=encoded, num_return_sequences=samples, **whole, **settings)
    sequences = sampled[:, 1:]  # without [CLS]
    ends = (sequences == processor.tokenizer.sep_token_id).long()
    labels = sequences.masked_fill(ends.cumsum(dim=1) > ends, -100)

    ids = [image_id for image_id in batch.image_ids for _ in range(samples)]
    rewards = torch.from_numpy(reward.reward(ids, processor.batch_decode(sampled, skip_special_tokens=True)))
    of_image = rewards.view(-1, samples)  # (images, samples)
    if baseline == "greedy":
        greedy = model.generate(encoder_outputs=encoded, do_sample=False, **settings)
        captions = processor.batch_decode(greedy, skip_special_tokens=True)
        compared_with = torch.from_numpy(reward.reward(batch.image_ids, captions)).unsqueeze(1)  # (images, 1)
    else:
        compared_with = (of_image.sum(dim=1, keepdim=True) - of_image) / (samples - 1)  # (images, samples)
    model.train(training)
    return labels, (of_image - compared_with).flatten().to(labels.device), rewards.mean().item()


def policy_gradient_loss(logits: torch.Tensor, labels: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """REINFORCE: minus the log probability of each sampled token, weighted by its caption's advantage, summed.

    Only its gradient is meaningful, not its value.

    Args:
        logits: (captions, steps, vocab_size).
        labels: (captions, steps), -100 after the end.
        advantages: (captions,).
    """
    negative_log_probs = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")  # 0 at -100
    return (advantages.unsqueeze(1) * negative_log_probs).sum()
