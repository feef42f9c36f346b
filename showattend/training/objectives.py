"""What a training step lowers: cross entropy of people's captions, or minus the reward of sampled ones."""

from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from modeling_showattend.metrics import CiderDReward
from modeling_showattend.modeling_showattend import ShowAttendForConditionalGeneration
from modeling_showattend.processing_showattend import ShowAttendProcessor
from showattend.data.batches import Batch

from .self_critical import policy_gradient_loss, sample_captions


class Objective(Protocol):
    """One forward pass of a step, which may have several, in micro-batches and processes."""

    uses_dropout: bool

    def __call__(self, batch: Batch, num_labels: int, num_batches: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Both results are this batch's part: the parts of all batches of a step add up to the step's value.

        Args:
            batch: Of this forward pass, on the model's device.
            num_labels: Of all batches of the step, on all processes.
            num_batches: Of the step, on all processes.

        Returns:
            The loss, for backward, and what is logged.
        """
        ...


class CrossEntropy:
    """The mean cross entropy of a token, teacher forced."""

    uses_dropout = True

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, batch: Batch, num_labels: int, num_batches: int) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(**batch.inputs, labels=batch.labels, num_items_in_batch=num_labels, skip_logits=True)
        return output.loss, output.loss.detach()


class SelfCritical:
    """Minus the advantage-weighted log probability of sampled captions; what is logged is minus their mean reward.

    Args:
        model: As accelerate prepared it, which casts to the run's precision and gathers gradients of all processes.
        captioner: The same model, unwrapped.
        sampling: Arguments of [`sample_captions`]: samples, baseline and max_length.
    """

    # A sampled caption's gradient must be that of the distribution it was drawn from, which has no dropout.
    uses_dropout = False

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        captioner: ShowAttendForConditionalGeneration,
        processor: ShowAttendProcessor,
        reward: CiderDReward,
        **sampling: Any,
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.captioner = captioner
        self.processor = processor
        self.reward = reward
        self.sampling = sampling

    def __call__(self, batch: Batch, num_labels: int, num_batches: int) -> tuple[torch.Tensor, torch.Tensor]:
        # Autocast of its own: the forward pass below must not meet weights that were cast without a gradient.
        with self.accelerator.autocast():
            labels, advantages, mean_reward = sample_captions(
                self.captioner, self.processor, batch, self.reward, **self.sampling
            )
        inputs = self.captioner.prepare_decoder_input_ids_from_labels(labels)
        logits = self.model(**batch.inputs, decoder_input_ids=inputs, use_cache=False).logits
        loss = policy_gradient_loss(logits, labels, advantages) / ((labels != -100).sum() * num_batches)
        return loss, torch.tensor(-mean_reward) / num_batches
