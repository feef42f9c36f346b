"""The curve of an occlusion measurement."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .occlusion import LEAST, MOST, OTHER, RANDOM

LABELS = {
    MOST: "cells looked at most",
    OTHER: "cells another noun looked at most",
    RANDOM: "random cells",
    LEAST: "cells looked at least",
}


def plot_falls(summary: Mapping[str, Any], path: str | Path) -> None:
    """Draw [`Measurement.summary`]: how far a noun's log probability falls over the number of covered cells."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for covered, label in LABELS.items():
        points = sorted((fall for fall in summary["falls"] if fall["covered"] == covered), key=lambda f: f["cells"])
        means = [point["mean"] for point in points]
        below = [point["mean"] - point["interval"][0] for point in points]
        above = [point["interval"][1] - point["mean"] for point in points]
        axes.errorbar([point["cells"] for point in points], means, [below, above], marker=".", capsize=3, label=label)
    axes.set(xlabel=f"covered cells of {summary['positions']}", ylabel="fall of a noun's log probability, nats")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
