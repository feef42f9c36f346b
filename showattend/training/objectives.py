"""Training objectives: cross entropy of reference captions, or minus the reward of sampled ones."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from showattend.data.batches import Batch
from showattend.metrics import CiderDReward

from .self_critical import policy_gradient_loss, sample_captions


class Objective(Protocol):
    """The objective of one forward pass; a step may have several, over micro-batches and processes."""

    uses_dropout: bool

    def __call__(self, batch: Batch, num_labels: int, num_batches: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss for backward and the value to log, a share of the step's: those of all its batches add up.

        Args:
            num_labels: The number of labels in all batches of the step, on all processes.
            num_batches: The number of batches in the step, on all processes.
        """
        ...


@dataclass
class CrossEntropy:
    """The mean cross entropy per token, with teacher forcing."""

    model: nn.Module

    uses_dropout = True

    def __call__(self, batch: Batch, num_labels: int, num_batches: int) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(**batch.inputs, labels=batch.labels, num_items_in_batch=num_labels, skip_logits=True)
        return output.loss, output.loss.detach()


@dataclass
class SelfCritical:
    """Minus the advantage-weighted log probability of sampled captions; logs minus their mean reward.

    Args:
        model: Prepared by accelerate, which casts to the run's precision and gathers gradients of all processes.
        captioner: The same model, unwrapped.
        sampling: Arguments of [`sample_captions`]: samples, baseline and max_length.
    """

    accelerator: Accelerator
    model: nn.Module
    captioner: ShowAttendForConditionalGeneration
    processor: ShowAttendProcessor
    reward: CiderDReward
    sampling: dict[str, Any]

    # The gradient must belong to the distribution that captions are sampled from, which has no dropout.
    uses_dropout = False

    def __call__(self, batch: Batch, num_labels: int, num_batches: int) -> tuple[torch.Tensor, torch.Tensor]:
        # A separate autocast: its cache would hand weights cast without a gradient to the forward pass below.
        with self.accelerator.autocast():
            labels, advantages, mean_reward = sample_captions(
                self.captioner, self.processor, batch, self.reward, **self.sampling
            )
        inputs = self.captioner.prepare_decoder_input_ids_from_labels(labels)
        logits = self.model(**batch.inputs, decoder_input_ids=inputs, use_cache=False).logits
        loss = policy_gradient_loss(logits, labels, advantages) / ((labels != -100).sum() * num_batches)
        return loss, torch.tensor(-mean_reward) / num_batches
