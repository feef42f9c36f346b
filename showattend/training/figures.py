"""Writes a training run's log, its curves, and sample captions beside their images."""

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from matplotlib.figure import Figure
from PIL import Image

from modeling_showattend.image_processing_showattend import load_image
from showattend.folders import write_file


def write_log(output: Path, figures: dict[str, Any], captions: dict[str, str], images: Dataset) -> None:
    """Write a line of figures, the curves so far, and a few captions beside their images."""
    log = output / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    lines = [line for line in lines if line["epoch"] < figures["epoch"]] + [figures]  # a repeated epoch is logged once
    write_file(log, "".join(json.dumps(line) + "\n" for line in lines))
    plot_curves(lines, output / "curves.png")
    (output / "samples").mkdir(exist_ok=True)
    few = images.select(range(min(6, len(images))))
    samples = [(load_image(row["image"]), captions[row["image_id"]]) for row in few]
    plot_samples(samples, output / "samples" / f"epoch-{figures['epoch']:03}.png")


def plot_curves(log: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Losses on the left, caption metrics on the right, over the epochs of a run's `log.jsonl`."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, metrics = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in log]
    for name, label in (("train_loss", "training, regularisers included"), ("loss", "validation")):
        # Self-critical training logs minus the reward instead of a loss.
        losses.plot(epochs, [line[name] if line[name] > 0 else math.nan for line in log], marker=".", label=label)
    for name, label in (("cider", "CIDEr"), ("bleu_4", "BLEU-4"), ("meteor", "METEOR"), ("rouge_l", "ROUGE-L")):
        if all(name in line for line in log):
            metrics.plot(epochs, [line[name] for line in log], marker=".", label=label)
    losses.set(xlabel="epoch", ylabel="loss per token")
    metrics.set(xlabel="epoch", ylabel="validation score (x 100)")
    for axes in (losses, metrics):
        axes.legend()
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=100)


def plot_samples(samples: Sequence[tuple[Image.Image, str]], path: str | Path) -> None:
    """Images in rows of three, each with its caption underneath."""
    rows = -(-len(samples) // 3)
    figure = Figure(figsize=(9, 3.5 * rows), layout="constrained")
    for number, axes in enumerate(figure.subplots(rows, 3, squeeze=False).flat):
        axes.set(xticks=[], yticks=[], frame_on=False)
        if number < len(samples):
            image, caption = samples[number]
            axes.imshow(image)
            axes.set_xlabel("\n".join(textwrap.wrap(caption, 40)), fontsize=9)
    figure.savefig(path, dpi=80)
