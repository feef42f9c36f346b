"""The measurement of the attention maps: against plain loops, and as a command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_flickr import make_folder

from modeling_showattend import ShowAttendProcessor
from showattend.attention.maps import attend
from showattend.attention.occlusion import (
    FUNCTION_WORDS,
    LEAST,
    MOST,
    OTHER,
    OWN,
    RANDOM,
    Measurement,
    frequent_nouns,
    measure_occlusion,
)
from showattend.commands.evaluate_attention import main

MakeModel = Callable[..., Any]
IMAGES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((64, 64), 0)
    for seed in range(5)
]


def words_only(model: Any) -> Any:
    """Its captions are 8 different words."""
    model.generation_config.update(min_length=9, max_length=9, suppress_tokens=[0, 1, 2, 4], no_repeat_ngram_size=1)
    return model


def covered_log_probability(
    model: Any, inputs: Any, ids: list[int], step: int, cells: list[int], pixels: bool
) -> float:
    """The log probability of `ids[step]` with some of the 2 x 2 cells covered."""
    pixel_values = inputs["pixel_values"].clone()
    with torch.no_grad():
        if pixels:
            for cell in cells:
                top, left = 32 * (cell // 2), 32 * (cell % 2)
                pixel_values[0, :, top : top + 32, left : left + 32] = 0
        features = model.encoder(pixel_values=pixel_values)[0].clone()
        if not pixels:
            features[0, cells] = features[0].mean(dim=0)
        logits = model(encoder_outputs=(features,), decoder_input_ids=torch.tensor([[2, *ids[:step]]])).logits
    return float(logits[0, step].log_softmax(dim=-1)[ids[step]])


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("gate", [False, True])
def test_falls_are_those_of_a_plain_loop(
    make_model: MakeModel, processor: ShowAttendProcessor, pixels: bool, gate: bool
) -> None:
    model = words_only(make_model(seed=3, context_gate=gate))
    measured = measure_occlusion(model, processor, [IMAGES[:3], IMAGES[3:]], (1, 2), cover_pixels=pixels)
    expected: dict[tuple[str, int], list[tuple[int, float]]] = {
        (covered, number): [] for covered in (MOST, LEAST, OWN, OTHER) for number in (1, 2)
    }
    looks = []
    for number_of_image, picture in enumerate(IMAGES):
        attended = attend(model, processor, picture)
        ids = processor.tokenizer.convert_tokens_to_ids(attended.words)
        inputs = processor(images=picture, return_tensors="pt")
        weights = attended.grids.reshape(len(ids), 4)
        looks.append(weights)
        found = [step for step, word in enumerate(attended.words) if word in frequent_nouns()]
        for place, step in enumerate(found):
            order = np.argsort(-weights[step])
            others = [s for s in found[place + 1 :] + found[:place] if attended.words[s] != attended.words[step]]
            orders = {MOST: order, LEAST: order[::-1]}
            if others:
                orders |= {OWN: order, OTHER: np.argsort(-weights[others[0]])}
            before = covered_log_probability(model, inputs, ids, step, [], pixels)
            for number in (1, 2):
                for covered, cells in orders.items():
                    after = covered_log_probability(model, inputs, ids, step, list(cells[:number]), pixels)
                    expected[covered, number].append((number_of_image, before - after))
    assert len(expected[MOST, 1]) >= len(expected[OTHER, 1]) > 4
    for key, falls in expected.items():
        assert np.array(sorted(measured.falls[key])) == pytest.approx(np.array(sorted(falls)), abs=1e-3)
    assert len(measured.falls[RANDOM, 2]) == len(expected[MOST, 2])

    maps = measured.summary()["maps"]
    variations = [abs(weights[1:] - weights[:-1]).sum(axis=1) / 2 for weights in looks]
    assert maps["total_variation"]["mean"] == pytest.approx(np.mean(variations), abs=1e-4)
    entropies = [-(weights * np.log(weights)).sum(axis=1) for weights in looks]
    assert maps["entropy"]["mean"] == pytest.approx(np.mean(entropies), abs=1e-4)
    assert maps["entropy"]["maximum"] == pytest.approx(np.log(4), abs=1e-4)


def test_function_words_count_by_their_gates(make_model: MakeModel, processor: ShowAttendProcessor) -> None:
    model = words_only(make_model(seed=3, context_gate=True))
    with torch.no_grad():
        model.decoder.f_beta.weight.zero_()  # all gates alike
    words = [word for image in IMAGES for word in attend(model, processor, image).words]
    share = np.mean([word in FUNCTION_WORDS for word in words])
    figures = measure_occlusion(model, processor, [IMAGES], (1,)).summary()["maps"]["function_words"]
    assert 0 < share < 1 and figures["mean"] == pytest.approx(share, abs=1e-4)

    measured = Measurement(images=1, positions=4, function_words=[(0, 0.25, 0.25), (0, 0.0, 0.75)])
    measured.total_variations = measured.entropies = [(0, 0.5)]
    assert measured.summary()["maps"]["function_words"] == {"mean": 0.25, "interval": [0.25, 0.25]}


def test_images_are_resampled_and_not_their_nouns() -> None:
    """A hundred equal nouns of one image count no more than one."""
    random = np.random.default_rng(0)
    values = random.normal(1, 1, 50)
    figures = []
    for copies in (1, 100):
        measured = Measurement(images=50, positions=4, total_variations=[(0, 1.0)], entropies=[(0, 1.0)])
        measured.function_words = [(0, 1.0, 1.0)]
        measured.falls[MOST, 5] = [(image, value) for image, value in enumerate(values) for _ in range(copies)]
        measured.falls[RANDOM, 5] = [(image, value / 4) for image, value in measured.falls[MOST, 5]]
        figures.append(measured.summary())
    assert figures[0]["falls"][0]["interval"] == pytest.approx(figures[1]["falls"][0]["interval"], abs=1e-3)
    low, high = figures[0]["falls"][0]["interval"]
    error = values.std() / 50**0.5
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.05)
    assert figures[0]["ratios"] == [{"cells": 5, "ratio": "most / random", "mean": 4, "interval": [4, 4]}]


def test_nouns_are_not_function_words() -> None:
    nouns = frequent_nouns()
    assert len(nouns) > 400 and {"dog", "man", "grass"} < nouns
    assert all(noun.isalpha() and noun.islower() for noun in nouns) and not nouns & FUNCTION_WORDS


def test_the_command_writes_figures_and_a_curve(
    make_model: MakeModel, processor: ShowAttendProcessor, tmp_path: Path, capsys: Any
) -> None:
    images = make_folder(tmp_path / "data") / "photos"
    words_only(make_model(seed=3)).save_pretrained(tmp_path / "captioner")
    processor.save_pretrained(tmp_path / "captioner")
    arguments = ["--dataset", str(images), "--output-dir", str(tmp_path / "out"), "--split", "train"]
    arguments += ["--checkpoint", str(tmp_path / "captioner"), "--max-images", "6", "--batch-size", "4"]
    assert main([*arguments, "--num-cells", "1", "3"]) == 0
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert (figures["images"], figures["positions"], figures["dataset"]) == (6, 4, "photos")
    assert {(fall["cells"], fall["covered"]) for fall in figures["falls"]} >= {(1, MOST), (3, MOST), (3, RANDOM)}
    assert len(capsys.readouterr().out.splitlines()) == len(figures["falls"])
    Image.open(tmp_path / "out" / "curve.png").verify()

    for options, message in (
        ([], "--num-cells 5 must be between 1 and 3"),
        (["--split", "test", "--dataset", "missing"], "missing"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, *options])
        assert stop.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and message in error
