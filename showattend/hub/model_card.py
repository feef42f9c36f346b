"""Model cards: measured scores in a card's metadata and table, and a plain card for a checkpoint without one."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig, PreTrainedConfig

from modeling_showattend import ShowAttendConfig

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
INTERVAL = "confidence_interval_95"
STATISTIC_NAMES = {
    "distinct_captions": "distinct captions",
    "distinct_words": "distinct words",
    "mean_length": "words per caption",
    "repeated": "repeat a word, %",
    "dangling": "break off, %",
    "unreferenced": "content words in no reference, %",
}
# The tables are between these lines, which Markdown does not show.
BEGIN, END = "<!-- figures: written from measured results, not by hand -->", "<!-- end of figures -->"
BEGIN_STATISTICS, END_STATISTICS = BEGIN.replace("figures", "statistics"), END.replace("figures", "statistics")

TEMPLATE = Path(__file__).with_name("card.md")


def eval_results(figures: dict[str, Any]) -> list[EvalResult]:
    """The metrics that [`evaluate_checkpoint`] returned as entries of a card's metadata, rounded."""
    decoding = _decoding(figures["generation"])
    return [
        EvalResult(
            task_type="image-to-text",
            dataset_type=figures["dataset"],
            dataset_name=figures["dataset"],
            dataset_split=figures["split"],
            metric_type=name.split("_")[0],
            metric_name=f"{METRIC_NAMES[name]} ({decoding})",
            metric_value=round(value, 1),
            metric_args={INTERVAL: [round(bound, 2) for bound in figures["intervals"][name]]},
        )
        for name, value in figures["metrics"].items()
    ]


def stored_figures(folder: str | Path) -> list[dict[str, Any]]:
    """All `*.json` of a folder, each an evaluation's `figures.json`: by split, fewest beams first."""
    stored = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    if not stored:
        raise FileNotFoundError(f"{folder} holds no stored results.")
    stored.sort(key=lambda figures: (figures["split"], figures["generation"].get("num_beams", 1)))
    return stored


def figures_of_readme(folder: str | Path) -> list[dict[str, Any]]:
    """The stored figures, after those of the write-up's recipe, which lie in `folder`/original."""
    original = stored_figures(Path(folder) / "original")
    for figures in original:
        figures["dataset"] = f"`--preset original`, {figures['dataset']}"  # for the table's first column
    return original + stored_figures(folder)


def with_stored_figures(text: str, stored: Sequence[dict[str, Any]]) -> str:
    """Replace the results in a card's metadata, and the tables of results and of statistics between their markers."""
    text = with_evaluation(text, [result for figures in stored for result in eval_results(figures)])
    return _between(text, BEGIN_STATISTICS, END_STATISTICS, statistics_table(stored))


def with_evaluation(text: str, results: Sequence[EvalResult]) -> str:
    """Replace the results in a card's metadata and in the table between the two markers.

    Either may be missing: a README of code has no metadata. ValueError if the metadata is invalid.
    """
    if text.startswith("---"):
        card = ModelCard(text)
        data: Any = card.data
        heading = re.search(r"^# (.+)", card.text, re.MULTILINE)
        data.model_name = data.model_name or (heading[1] if heading else "captioner")  # a model-index needs one
        data.eval_results = list(results)
        text = str(card)
    return _between(text, BEGIN, END, results_table(results))


def _between(text: str, begin: str, end: str, content: str) -> str:
    marked = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    return marked.sub(lambda _: f"{begin}\n\n{content}\n{end}", text)


def results_table(results: Sequence[EvalResult]) -> str:
    """A Markdown table with a row for each split and decoding, and a column for each metric.

    The number after ± is half the width of the 95 % interval; results of older cards may have none.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for result in results:
        metric, _, decoding = str(result.metric_name).partition(" (")
        row = rows.setdefault((f"{result.dataset_name} {result.dataset_split}", decoding.removesuffix(")")), {})
        row[metric] = f"{result.metric_value:.1f}"
        if interval := (result.metric_args or {}).get(INTERVAL):
            low, high = interval
            row[metric] += f" ± {(high - low) / 2:.1f}"
    metrics = [name for name in METRIC_NAMES.values() if any(name in row for row in rows.values())]
    cells = [[*names, *(row.get(name, "") for name in metrics)] for names, row in rows.items()]
    return _table(["split", "search"], metrics, cells)


def statistics_table(stored: Sequence[dict[str, Any]]) -> str:
    """A Markdown table with a row for each split and decoding, and a column for each statistic."""
    cells = [
        [f"{figures['dataset']} {figures['split']}", _decoding(figures["generation"])]
        + [f"{round(figures['statistics'][name], 1):g}" for name in STATISTIC_NAMES]
        for figures in stored
    ]
    return _table(["split", "search"], list(STATISTIC_NAMES.values()), cells)


def _table(names: list[str], numbers: list[str], cells: list[list[str]]) -> str:
    lines = [[*names, *numbers], *cells]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "|" + "---|" * len(names) + "---:|" * len(numbers))
    return "\n".join(text) + "\n"


def add_evaluation(path: str | Path, figures: dict[str, Any]) -> None:
    """Write what [`evaluate_checkpoint`] returned into a card, in place of results of the same split and decoding.

    The card is created if absent.

    Raises:
        ValueError: If its metadata is invalid, or it is absent and the checkpoint is of another architecture.
    """
    path = Path(path)
    if not path.exists():
        checkpoint = figures["checkpoint"]
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        if not isinstance(config, ShowAttendConfig):
            raise ValueError(f"There is no card {path}, and none is made for a {config.model_type} model.")
        path.write_text(new_card(config, f"USER/{Path(checkpoint).name}"))
    text = path.read_text()
    new = eval_results(figures)

    def measured(result: EvalResult) -> tuple[Any, ...]:
        return result.dataset_type, result.dataset_split, str(result.metric_name).partition(" (")[2]

    replaced = {measured(result) for result in new}
    try:
        data: Any = ModelCard(text).data
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} has invalid metadata: {' '.join(str(error).split())}") from error
    old = [result for result in data.eval_results or [] if measured(result) not in replaced]
    path.write_text(with_evaluation(text, old + new))


def new_card(config: PreTrainedConfig, model: str) -> str:
    """Make a card of `model`, an id on the Hub, that states what the config states, and nothing else."""
    data = ModelCardData(
        library_name="transformers", pipeline_tag="image-to-text", tags=["image-captioning", "showattend"]
    )
    backbone = config.backbone_config
    facts = {
        "config": config,
        "encoder": config.encoder_name if backbone is None else getattr(backbone, "backbone", backbone.model_type),
        "model": model,
        "model_name": Path(model).name,
        "begin": BEGIN,
        "end": END,
    }
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), **facts)
    return f"{card}\n"


def published_card(path: str | Path) -> dict[str, bytes]:
    """A card's files in a checkpoint's folder: `README.md`, and what it links to at the same relative paths."""
    path = Path(path)
    linked = {link: (path.parent / link).read_bytes() for link in local_links(path.read_text())}
    return {"README.md": path.read_bytes()} | linked


def local_links(text: str) -> list[str]:
    """The relative targets of a card's links and images, which must be uploaded with it."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)\s]+)|\b(?:src|href)=\"([^\"]+)\"", text)
    targets = dict.fromkeys((first or second).partition("#")[0] for first, second in links)
    return [target for target in targets if target and not re.match(r"\w+:", target)]


def _decoding(generation: dict[str, Any]) -> str:
    settings = dict(generation)
    beams = settings.pop("num_beams", 1)
    if beams == 1:
        settings.pop("length_penalty", None)  # ranks beams only
    method = "greedy search" if beams == 1 else f"beam search, {beams} beams"
    return ", ".join([method, *(f"{name} {value}" for name, value in settings.items())])
