"""Scores captions, wherever they come from, and compares two captioners on the same images."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from showattend.data.caption_files import read_captions
from showattend.data.captions import load_split
from showattend.metrics import (
    Metric,
    caption_metrics,
    caption_statistics,
    confidence_intervals,
    paired_differences,
)

FIGURES, CAPTIONS = "figures.json", "captions.json"


def evaluate_captions(
    captions: str | Path,
    dataset: str,
    output_dir: str | Path,
    split: str = "validation",
    compare: str | Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> dict[str, Any]:
    """Score captions that something else generated.

    Args:
        captions: As in [`read_captions`]; of several captions of an image only the first counts, which is the best in
            files of `showattend caption`. The other arguments are those of [`evaluate_checkpoint`].

    Returns:
        What [`write_figures`] returns; `captions` is the file's name.

    Raises:
        ValueError: If the dataset lacks the split, the file has another format or lacks an image.
        OSError: If a file cannot be read, or the folder cannot be written.
    """
    check_output_dir(output_dir)
    images = load_split(dataset, split, image_column, caption_column)
    described = {"captions": Path(captions).name, **describe_data(dataset, split)}
    others = compared_captions(compare, images["image_id"])
    return write_figures(described, _first_captions(captions, images["image_id"]), images, output_dir, others)


def check_output_dir(output_dir: str | Path) -> None:
    """Create the folder before any work is done."""
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"`output_dir` {output_dir} cannot be written: {error.strerror}.") from error


def describe_data(dataset: str, split: str) -> dict[str, str]:
    """The dataset's name in the figures: a folder's name without its path."""
    return {"dataset": Path(dataset).resolve().name if Path(dataset).exists() else dataset, "split": split}


def write_figures(
    described: Mapping[str, Any],
    captions: Mapping[str, str],
    images: datasets.Dataset,
    output_dir: str | Path,
    others: tuple[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """Score captions and write the figures.

    Args:
        described: What was evaluated and how, for the figures.
        captions: image id -> caption, of all the images.
        output_dir: Where `captions.json`, the captions in the COCO results format, and `figures.json` are written.
        others: The captions to compare with, as [`compared_captions`] returns them.

    Returns:
        `described`, the number of `images`, `metrics` (the corpus scores times 100), their 95 % bootstrap `intervals`
        over images and `statistics` of the captions. With `others`, `differences`: for each metric how much better
        these captions are, the paired interval, and whether it includes 0, so that both count as equal.
    """
    output = Path(output_dir)
    references = dict(zip(images["image_id"], images["captions"], strict=True))
    results = [{"image_id": image_id, "caption": captions[image_id]} for image_id in references]
    (output / CAPTIONS).write_text(json.dumps(results, indent=1) + "\n")  # first: scoring may fail
    compared = None if others is None else (others[0], caption_metrics(others[1], references))
    figures = {**described, **figures_of(caption_metrics(captions, references), captions, references, compared)}
    (output / FIGURES).write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def compared_captions(compare: str | Path | None, image_ids: Sequence[str]) -> tuple[str, dict[str, str]] | None:
    """The captions to compare with, and what to call them.

    Args:
        compare: Captions of another captioner, as in [`read_captions`], or the `figures.json` of its evaluation, which
            has `captions.json` beside it.
    """
    if compare is None:
        return None
    path = Path(compare).with_name(CAPTIONS) if Path(compare).name == FIGURES else compare
    return str(compare), _first_captions(path, image_ids)


def figures_of(
    metrics: Mapping[str, Metric],
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    others: tuple[str, Mapping[str, Metric]] | None = None,
) -> dict[str, Any]:
    """The figures of [`write_figures`] that follow from captions; `others`: name and metrics of another captioner."""
    figures: dict[str, Any] = {
        "images": len(captions),
        "metrics": {name: float(metric.score()) for name, metric in metrics.items()},
        "intervals": {name: list(interval) for name, interval in confidence_intervals(metrics).items()},
        "statistics": caption_statistics(captions, references),
    }
    if others is not None:
        figures["compared_with"], other_metrics = others
        figures["differences"] = {
            name: difference._asdict() | {"equal": difference.is_equal}
            for name, difference in paired_differences(metrics, other_metrics).items()
        }
    return figures


def summary(figures: Mapping[str, Any]) -> str:
    """The figures as lines of text."""
    lines = []
    for name, value in figures["metrics"].items():
        low, high = figures["intervals"][name]
        line = f"{name:9}{value:6.1f}  [{low:.1f}, {high:.1f}]"
        if difference := figures.get("differences", {}).get(name):
            line += "  {value:+.1f} [{low:+.1f}, {high:+.1f}]".format(**difference)
            line += ", equal" * difference["equal"]
        lines.append(line)
    lines.append("  ".join(f"{name} {value:.4g}" for name, value in figures["statistics"].items()))
    other = f", differences to {figures['compared_with']}" if "compared_with" in figures else ""
    return "\n".join([f"{figures['images']} images, 95 % bootstrap intervals{other}", *lines])


def _first_captions(path: str | Path, image_ids: Sequence[str]) -> dict[str, str]:
    captions = read_captions(path, image_ids)
    if missing := [image_id for image_id in image_ids if image_id not in captions]:
        raise ValueError(f"{path} lacks a caption for {len(missing)} of {len(image_ids)} images, {missing[0]!r} first.")
    return {image_id: captions[image_id][0] for image_id in image_ids}
