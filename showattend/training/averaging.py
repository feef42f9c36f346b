"""Averages of weights, which generate better captions than the weights of any single step."""

import copy

import torch
from torch.optim.swa_utils import AveragedModel

from modeling_showattend import ShowAttendForConditionalGeneration

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


def moving_average(model: ShowAttendForConditionalGeneration, decay: float) -> AveragedModel:
    """An exponential moving average of a model's weights, starting from its current ones.

    The decay rises to `decay`, so that the initial weights do not dominate the first averages. Weights that do not
    change keep every bit, so that cached features stay valid.
    """

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, num_averaged: torch.Tensor | int) -> None:
        steps = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, steps / (steps + 10)))

    average = AveragedModel(model, multi_avg_fn=update)
    average.update_parameters(model)  # the first update copies
    return average


@torch.no_grad()
def between(
    start: ShowAttendForConditionalGeneration, end: ShowAttendForConditionalGeneration, share: float
) -> ShowAttendForConditionalGeneration:
    """Interpolate weights: `share` of the start's, the rest of the end's, which was fine-tuned from it.

    Fine-tuning overfits the training set; an interpolation generalises better than either end (Wortsman et al., 2022,
    "Robust fine-tuning of zero-shot models", https://arxiv.org/abs/2109.01903).
    """
    average = copy.deepcopy(start)
    torch._foreach_lerp_(list(average.parameters()), list(end.parameters()), 1 - share)
    return average
