"""A captioner between two: the weights of one, moved a part of the way to those of another that was trained from it.

What self-critical training gains on photos that it has not seen lies in the first part of its way; the rest of it fits
the training photos and gives up words. Part of the way keeps most of both (Wortsman et al., 2022, "Robust fine-tuning
of zero-shot models", https://arxiv.org/abs/2109.01903).
"""

from pathlib import Path

import torch

from .captioner import load_captioner
from .safe_folders import replacing


@torch.no_grad()
def mix_checkpoints(start: str | Path, end: str | Path, share: float, output_dir: str | Path) -> None:
    """Write the captioner whose weights are (1 - share) of `start`'s and `share` of `end`'s.

    Args:
        start, end: Folders or Hub ids of captioners with the same config and vocabulary.
        share: From 0 to 1.
        output_dir: Where to write; what lies there is replaced.

    Raises:
        OSError: If a checkpoint cannot be read or the folder not be written.
        ValueError: If the share is out of range or the two captioners are of different kinds.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie between 0 and 1, not be {share}.")
    model, processor = load_captioner(start)
    other, other_processor = load_captioner(end)
    shapes, other_shapes = ({name: p.shape for name, p in m.named_parameters()} for m in (model, other))
    if shapes != other_shapes or processor.tokenizer.get_vocab() != other_processor.tokenizer.get_vocab():
        raise ValueError(f"{start} and {end} are captioners of different sizes or vocabularies: they do not mix.")
    for weights, others in zip(model.parameters(), other.parameters(), strict=True):
        weights.lerp_(others, share)
    with replacing(Path(output_dir)) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
