"""The figures in the model card are those that were measured, and its pictures travel with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backbones import backbone_config
from huggingface_hub import EvalResult, ModelCard
from tiny_flickr import ROOT

from modeling_showattend import ShowAttendConfig
from showattend import DEFAULT_CHECKPOINT
from showattend.hub.model_card import (
    BEGIN,
    BEGIN_STATISTICS,
    END,
    END_STATISTICS,
    add_evaluation,
    eval_results,
    figures_of_readme,
    local_links,
    new_card,
    published_card,
    results_table,
    stored_figures,
    with_stored_figures,
)

CARD = ROOT / "model_card.md"
UPDATE = "python scripts/update_model_card.py brings it up to date"
FIGURES: dict[str, Any] = {
    "dataset": "flickr8k",
    "split": "validation",
    "generation": {"num_beams": 3},
    "metrics": {"bleu_4": 22.26, "cider": 60.0},
    "statistics": {
        "distinct_captions": 818,
        "distinct_words": 268,
        "mean_length": 10.329,
        "repeated": 8.3,
        "dangling": 0.0,
        "unreferenced": 45.286,
    },
    "intervals": {"bleu_4": [21.004, 23.5], "cider": [56.4, 64.4]},
}


def metrics(card: Path | str) -> dict[str, float]:
    data: Any = (ModelCard.load(card) if isinstance(card, Path) else ModelCard(card)).data
    return {f"{result.dataset_split} {result.metric_name}": result.metric_value for result in data.eval_results or []}


def test_figures_in_a_card(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    text = f"# Tiny\n\nBefore.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n"
    card.write_text(f"---\nlicense: apache-2.0\n---\n\n{text}")
    add_evaluation(
        card, FIGURES | {"metrics": {"bleu_4": 1.0, "meteor": 2.0}, "intervals": {"bleu_4": [0, 2], "meteor": [1, 3]}}
    )
    add_evaluation(card, FIGURES | {"generation": {"num_beams": 1}, "metrics": {"bleu_4": 20.0}})
    add_evaluation(card, FIGURES | {"split": "test"})
    add_evaluation(card, FIGURES)  # a second measurement replaces the first, including METEOR
    assert metrics(card) == {
        "validation BLEU-4 (greedy search)": 20.0,
        "test BLEU-4 (beam search, 3 beams)": 22.3,
        "test CIDEr (beam search, 3 beams)": 60.0,
        "validation BLEU-4 (beam search, 3 beams)": 22.3,
        "validation CIDEr (beam search, 3 beams)": 60.0,
    }
    data: Any = ModelCard.load(card).data
    assert (data.license, data.model_name) == ("apache-2.0", "Tiny")
    assert {result.metric_type for result in data.eval_results} == {"bleu", "cider"}
    assert data.eval_results[-2].metric_args == {"confidence_interval_95": [21.0, 23.5]}
    assert card.read_text().endswith(
        f"""Before.

{BEGIN}

| split | search | BLEU-4 | CIDEr |
|---|---|---:|---:|
| flickr8k validation | greedy search | 20.0 ± 1.2 |  |
| flickr8k test | beam search, 3 beams | 22.3 ± 1.2 | 60.0 ± 4.0 |
| flickr8k validation | beam search, 3 beams | 22.3 ± 1.2 | 60.0 ± 4.0 |

{END}

After.
"""
    )


@pytest.mark.parametrize("metadata", ["tags: [a", "- a", "model-index: a"])
def test_a_card_with_invalid_metadata_stays(metadata: str, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(f"---\n{metadata}\n---\n")
    with pytest.raises(ValueError, match=r"README\.md has invalid metadata: ") as error:
        add_evaluation(card, FIGURES)
    assert "\n" not in str(error.value)
    assert card.read_text() == f"---\n{metadata}\n---\n"


def test_results_of_others_have_no_interval() -> None:
    result = EvalResult(
        task_type="image-to-text",
        dataset_type="coco",
        dataset_name="coco",
        metric_type="bleu",
        metric_name="BLEU-4 (greedy search)",
        metric_value=30.04,
        metric_args={"max_order": 4},
    )
    assert "| coco None | greedy search | 30.0 |" in results_table([result])


@pytest.mark.parametrize(
    ("generation", "name"),
    [
        ({"num_beams": 1}, "greedy search"),
        ({"num_beams": 1, "length_penalty": 1.5}, "greedy search"),
        ({"num_beams": 5}, "beam search, 5 beams"),
        ({"num_beams": 3, "length_penalty": 1.5}, "beam search, 3 beams, length_penalty 1.5"),
        ({"num_beams": 1, "do_sample": True, "top_k": 5}, "greedy search, do_sample True, top_k 5"),
    ],
)
def test_searches_have_names(generation: dict[str, Any], name: str) -> None:
    assert [result.metric_name for result in eval_results(FIGURES | {"generation": generation})] == [
        f"BLEU-4 ({name})",
        f"CIDEr ({name})",
    ]


def test_stored_results(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no stored results"):
        stored_figures(tmp_path)
    for number, (split, beams) in enumerate([("validation", 1), ("test", 10), ("test", 3)]):
        stored = FIGURES | {"split": split, "generation": {"num_beams": beams}}
        (tmp_path / f"{number}.json").write_text(json.dumps(stored))
    text = with_stored_figures(new_card(ShowAttendConfig(), "me/tiny"), stored_figures(tmp_path))
    assert [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| flickr8k")] == [
        [" flickr8k test ", " beam search, 3 beams "],
        [" flickr8k test ", " beam search, 10 beams "],
        [" flickr8k validation ", " greedy search "],
    ]
    assert with_stored_figures(text, stored_figures(tmp_path)) == text
    (tmp_path / "0.json").unlink()
    assert "validation" not in with_stored_figures(text, stored_figures(tmp_path))
    statistics = f"{BEGIN_STATISTICS}\nold\n{END_STATISTICS}\n"
    assert with_stored_figures(statistics, stored_figures(tmp_path)) == (
        f"{BEGIN_STATISTICS}\n\n"
        "| split | search | distinct captions | distinct words | words per caption | repeat a word, % | break off, % "
        "| content words in no reference, % |\n|---|---|---:|---:|---:|---:|---:|---:|\n"
        "| flickr8k test | beam search, 3 beams | 818 | 268 | 10.3 | 8.3 | 0 | 45.3 |\n"
        "| flickr8k test | beam search, 10 beams | 818 | 268 | 10.3 | 8.3 | 0 | 45.3 |\n"
        f"\n{END_STATISTICS}\n"
    )
    plain = f"No metadata.\n{BEGIN}\n{END}\n"
    assert with_stored_figures(plain, stored_figures(tmp_path)).startswith(
        f"No metadata.\n{BEGIN}\n\n| split | search |"
    )


def test_a_new_card_claims_nothing(tmp_path: Path, make_config: Callable[..., ShowAttendConfig]) -> None:
    text = new_card(make_config(attention_dim=77), "me/tiny")
    card = ModelCard(text)
    assert metrics(text) == {}
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "image-to-text",
        "tags": ["image-captioning", "showattend"],
    }
    assert "# tiny\n" in text and 'pipeline(model="me/tiny", trust_remote_code=True)' in text
    assert "A resnet18 turns" in text and "(77 units)" in text and "Nothing has been measured yet." in text
    assert "lickr" not in text
    for kind, name in (("convnext", "convnext"), ("timm_backbone", "test_efficientnet")):
        config = make_config(encoder_name=None, backbone_config=backbone_config(kind))
        assert f"A {name} turns the image" in new_card(config, "me/tiny")

    make_config(attention_dim=77).save_pretrained(tmp_path)
    add_evaluation(tmp_path / "README.md", FIGURES | {"checkpoint": str(tmp_path)})
    made = (tmp_path / "README.md").read_text()
    assert "(77 units)" in made and "| beam search, 3 beams | 22.3 ± 1.2 | 60.0 ± 4.0 |" in made
    assert len(metrics(made)) == 2
    assert str(tmp_path) not in made  # paths are private


def test_links() -> None:
    text = """[a](a.png) ![b](docs/b.webp "title") <img src="c/c.png" width="3"> [web](https://x.org/y.png) [h](#here)
[mail](mailto:me@x.org) [twice](a.png#top)

```python
captioner[0](photo)
```
"""
    assert local_links(text) == ["a.png", "docs/b.webp", "c/c.png"]


def test_the_cards_agree_with_the_stored_results() -> None:
    """Metadata and table of the model card, and the README's table, are what docs/results makes of them."""
    results = ROOT / "docs" / "results"
    for path, stored in ((CARD, stored_figures(results)), (ROOT / "README.md", figures_of_readme(results))):
        text = path.read_text()
        assert BEGIN in text and END in text, f"{path.name} has no table of figures"
        assert text == with_stored_figures(text, stored), f"{path.name} disagrees with docs/results: {UPDATE}"


def test_the_card_is_the_hubs() -> None:
    data: Any = ModelCard.load(CARD).data
    assert data.license == "apache-2.0"
    assert data.language and data.datasets and data.metrics and data.library_name == "transformers"
    assert data.pipeline_tag == "image-to-text"


def test_what_the_card_links_to_travels() -> None:
    for link in local_links(CARD.read_text()):
        file = ROOT / link
        assert file.suffix in (".png", ".webp", ".jpg", ".gif"), f"{link} does not travel: name it without a link"
        assert file.stat().st_size < 1_000_000, f"{link} is too large to travel"


@pytest.mark.skipif(not DEFAULT_CHECKPOINT.is_dir(), reason=f"{DEFAULT_CHECKPOINT} is not there")
def test_the_published_checkpoint_has_the_card() -> None:
    for name, content in published_card(CARD).items():
        assert (DEFAULT_CHECKPOINT / name).read_bytes() == content, f"{name} in {DEFAULT_CHECKPOINT} is stale: {UPDATE}"
