"""Averages of the weights of captioners that were trained one from another.

An average keeps what several trainings gained ("Model soups", Wortsman et al., 2022,
https://arxiv.org/abs/2203.05482). Training itself averages with its start (`average_with_start`).
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from showattend.checkpoints import load_captioner, same_kind
from showattend.folders import check_replaceable, keep_others, replacing


@torch.no_grad()
def average_checkpoints(start: str | Path, shares: Mapping[str | Path, float], output_dir: str | Path) -> None:
    """Write the weighted average of several captioners; weights that are equal in all keep every bit.

    Args:
        start: Folder or Hub id of a captioner, which gets the rest of the shares.
        shares: Shares of other captioners with the same config and vocabulary, from 0 to 1, at most 1 in total.

    Raises:
        ValueError: If the shares are out of range or the captioners are of different kinds.
    """
    if not all(share >= 0 for share in shares.values()) or sum(shares.values()) > 1 + 1e-9:
        raise ValueError(
            f"the shares {', '.join(map(str, shares.values()))} must each be at least 0 and add up to at most 1."
        )
    output_dir = Path(output_dir).absolute()
    check_replaceable(output_dir)
    model, processor = load_captioner(start)
    weights = dict(model.named_parameters())
    of_start = {name: parameter.clone() for name, parameter in weights.items()}
    for end, share in shares.items():
        other, other_processor = load_captioner(end)
        others = dict(other.named_parameters())
        if not same_kind(model, processor, other, other_processor):
            raise ValueError(f"{start} and {end} have different sizes or vocabularies and cannot be averaged.")
        for name, parameter in weights.items():
            parameter.add_(others[name] - of_start[name], alpha=share)
    with replacing(output_dir) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        keep_others(output_dir, folder)
