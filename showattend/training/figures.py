"""Figures of a training run: its curves, and captions beside their photos."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image


def plot_curves(log: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Losses on the left, caption metrics on the right, over the epochs.

    Args:
        log: A mapping of figures for each epoch, as in a run's `log.jsonl`.
        path: Where to write the image; its suffix chooses the format.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, metrics = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in log]
    for name, label in (("train_loss", "training, regularisers included"), ("loss", "validation")):
        losses.plot(epochs, [line[name] for line in log], marker=".", label=label)
    for name, label in (("cider", "CIDEr"), ("bleu_4", "BLEU-4"), ("meteor", "METEOR"), ("rouge_l", "ROUGE-L")):
        if all(name in line for line in log):
            metrics.plot(epochs, [line[name] for line in log], marker=".", label=label)
    losses.set(xlabel="epoch", ylabel="loss a word piece")
    metrics.set(xlabel="epoch", ylabel="validation score (x 100)")
    for axes in (losses, metrics):
        axes.legend()
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=100)


def plot_samples(samples: Sequence[tuple[Image.Image, str]], path: str | Path) -> None:
    """Photos in rows of three, each with its caption underneath."""
    rows = -(-len(samples) // 3)
    figure = Figure(figsize=(9, 3.5 * rows), layout="constrained")
    for number, axes in enumerate(figure.subplots(rows, 3, squeeze=False).flat):
        axes.set(xticks=[], yticks=[], frame_on=False)
        if number < len(samples):
            photo, caption = samples[number]
            axes.imshow(photo)
            axes.set_xlabel("\n".join(textwrap.wrap(caption, 40)), fontsize=9)
    figure.savefig(path, dpi=80)
