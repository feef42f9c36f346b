"""Measured figures in the metadata of a model card, as the Hub shows them."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

METRIC_NAMES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "spice": "SPICE",
}


def add_evaluation(path: str | Path, figures: dict[str, Any], dataset_name: str = "Flickr8k") -> None:
    """Write what [`evaluate_checkpoint`] returned into the card's `model-index`; a figure that is there is replaced.

    Args:
        path: The card, a Markdown file whose metadata has a `model_name`.
        figures: The metrics, the split and the generation settings.
        dataset_name: As the card is to call the dataset.
    """
    card = ModelCard.load(path)
    beams = figures["generation"].get("num_beams", 1)
    search = "greedy search" if beams == 1 else f"beam search, {beams} beams"
    new = [
        EvalResult(
            task_type="image-to-text",
            dataset_type="flickr8k",
            dataset_name=dataset_name,
            dataset_split=figures["split"],
            metric_type=name.split("_")[0],
            metric_name=f"{METRIC_NAMES[name]} ({search})",
            metric_value=round(value, 1),
        )
        for name, value in figures["metrics"].items()
    ]
    replaced = {(result.dataset_split, result.metric_name) for result in new}
    old = [
        result for result in card.data.eval_results or [] if (result.dataset_split, result.metric_name) not in replaced
    ]
    card.data.eval_results = old + new
    card.save(path)
