from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from showattend.captioning.generate import TorchCaptioner, best_device, fastest_dtype
from showattend.captioning.stream import Caption, caption_stream
from showattend.generation import generation_config

MakeModel = Callable[..., ShowAttendForConditionalGeneration]


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Seven different images of noise, two of them unreadable."""
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        noise = torch.randint(0, 256, (4, 4, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).resize((64, 64), Image.Resampling.NEAREST).save(path)
    paths[2].write_bytes(b"")
    paths[5].write_bytes(paths[6].read_bytes()[:200])
    return [str(path) for path in paths]


def captions(stream: Iterator[tuple[str, list[Caption] | Exception]]) -> dict[str, list[str] | str]:
    return {
        name: str(outcome) if isinstance(outcome, Exception) else [caption.text for caption in outcome]
        for name, outcome in stream
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0, "max_length": 8},
        {"prefix": "a black dog", "num_beams": 2},
    ],
)
def test_captions_are_those_of_generate(
    make_model: MakeModel, processor: ShowAttendProcessor, images: list[str], settings: dict[str, Any]
) -> None:
    model = make_model()
    captioner = TorchCaptioner(model, processor, **settings)
    generated = captions(caption_stream(captioner, ((name, name) for name in images), batch_size=3))
    assert list(generated) == images
    generation = {name: value for name, value in settings.items() if name != "prefix"}
    for number, name in enumerate(images):
        if number in (2, 5):
            assert isinstance(generated[name], str)
            assert f"cannot read {name}: " in generated[name]
            continue
        inputs = processor(images=name, text=settings.get("prefix"), return_tensors="pt")
        expected = processor.batch_decode(model.generate(**inputs, **generation), skip_special_tokens=True)
        assert generated[name] == expected
    assert len({str(texts) for texts in generated.values()}) > 4


def test_scores_are_mean_log_probabilities(
    make_model: MakeModel, processor: ShowAttendProcessor, images: list[str]
) -> None:
    model = make_model()
    two = [images[0], images[3]]
    # Beam search divides the sum by length ** length_penalty.
    settings: dict[str, Any] = dict(num_beams=6, num_return_sequences=6, length_penalty=1.0)
    outputs = model.generate(
        **processor(images=two, text="a", return_tensors="pt"),
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    assert ((outputs.sequences == 3).sum(dim=1) > 1).tolist() == [False] * 6 + [True] * 6  # padded to the longer
    generated = caption_stream(TorchCaptioner(model, processor, "a", **settings), zip(two, two, strict=True))
    scores = [caption.score for _, captions in generated if isinstance(captions, list) for caption in captions]
    assert scores == pytest.approx(outputs.sequences_scores.tolist(), abs=1e-5)


def test_samples_come_best_first(make_model: MakeModel, processor: ShowAttendProcessor, images: list[str]) -> None:
    settings: dict[str, Any] = dict(do_sample=True, num_return_sequences=6, num_beams=1)
    [(_, generated)] = caption_stream(TorchCaptioner(make_model(), processor, **settings), [("", images[0])])
    assert not isinstance(generated, Exception)
    assert len({caption.text for caption in generated}) > 1
    assert generated == sorted(generated, key=lambda caption: -caption.score)


def test_images_are_read_as_they_are_needed(
    make_model: MakeModel, processor: ShowAttendProcessor, images: list[str]
) -> None:
    listed = 0

    def endless() -> Iterator[tuple[int, str]]:
        nonlocal listed
        while True:
            listed += 1
            yield listed, images[0]

    stream = caption_stream(TorchCaptioner(make_model(), processor), endless(), batch_size=2)
    for number in range(1, 12):
        assert next(stream)[0] == number
        assert listed <= number + 6


def test_images_of_different_sizes(make_model: MakeModel, processor: ShowAttendProcessor, images: list[str]) -> None:
    processor.image_processor.size = {"shortest_edge": 64}
    Image.open(images[1]).resize((64, 128)).save(images[1])
    captioner = TorchCaptioner(make_model(), processor)
    generated = captions(caption_stream(captioner, ((name, name) for name in images)))
    assert list(generated) == images
    for name in images[:2]:
        assert captions(caption_stream(captioner, [(name, name)])) == {name: generated[name]}


def test_settings_that_contradict(make_model: MakeModel, processor: ShowAttendProcessor) -> None:
    model = make_model()
    config = model.generation_config
    assert generation_config(config, num_return_sequences=3).num_beams == 3
    assert generation_config(config, num_return_sequences=3, num_beams=5).num_beams == 5
    assert generation_config(config, num_return_sequences=3, do_sample=True).num_beams == 1
    with pytest.raises(ValueError, match=r"3 captions of an image need 3 or more `num_beams`, not 2"):
        generation_config(config, num_return_sequences=3, num_beams=2)
    with pytest.raises(ValueError, match=r"`length_penalty` chooses among beams: it needs `num_beams`"):
        generation_config(config, length_penalty=2.0)
    with pytest.raises(ValueError, match=r"`num_beams` must be at least 1, not 0"):
        generation_config(config, num_beams=0)
    with pytest.raises(ValueError, match=r"`num_return_sequences` must be at least 1, not '3'"):
        generation_config(config, num_return_sequences="3")
    with pytest.raises(ValueError, match=r"generate has no setting number_of_beams"):
        generation_config(config, number_of_beams=2)
    config.num_beams = 3
    assert generation_config(config, length_penalty=2.0, num_beams=None).num_beams == 3
    assert generation_config(config, do_sample=True).num_beams == 1
    assert config.num_return_sequences is None
    assert config.length_penalty is None
    assert TorchCaptioner(model, processor, "A Black dog").generation_config.num_beams == 3
    with pytest.raises(ValueError, match=r"`prefix` 'a zebra' holds a word that the checkpoint's vocabulary does not"):
        TorchCaptioner(model, processor, "a zebra")
    with pytest.raises(ValueError, match=r"`prefix` has 3 tokens with \[CLS\], which leaves none for a caption of 3"):
        TorchCaptioner(model, processor, "a dog", max_length=3)


def test_precision_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastest_dtype(torch.device("cpu")) == torch.float32
    for has_bfloat16, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bfloat16, **_: has)
        assert fastest_dtype(torch.device("cuda", 0)) == expected
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert best_device() == torch.device("cuda")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert best_device() == torch.device("cpu")
