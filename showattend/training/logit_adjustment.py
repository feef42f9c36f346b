"""Makes rare tokens likelier, which a captioner that is judged by its likeliest captions hardly uses."""

from collections import Counter
from collections.abc import Iterable

import torch

from modeling_showattend import ShowAttendForConditionalGeneration


@torch.no_grad()
def adjust_logits(model: ShowAttendForConditionalGeneration, labels: Iterable[int], strength: float) -> None:
    """Lower the output bias of each token by `strength` times the logarithm of its frequency.

    This is the logit adjustment of Menon et al., 2021, "Long-tail learning via logit adjustment"
    (https://arxiv.org/abs/2007.07314, section 4.1), after training. The shifts are centred, and [SEP] has none, so that
    captions hardly change in length. Tokens that no caption has keep their bias.

    Args:
        labels: All tokens of the training captions.
    """
    counts = Counter(labels)
    counts.pop(model.config.eos_token_id, None)
    tokens = torch.tensor(list(counts))
    frequencies = torch.tensor(list(counts.values()), dtype=torch.float64)
    frequencies /= frequencies.sum()
    logarithms = frequencies.log()
    shifts = strength * (logarithms - (frequencies * logarithms).sum())
    bias = model.decoder.fcn.bias
    bias[tokens.to(bias.device)] -= shifts.to(bias)
