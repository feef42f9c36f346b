"""What the processor gives to `forward` and `generate`, and that a saved folder is complete."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, ImageTextToTextPipeline

from modeling_showattend.configuration_showattend import ShowAttendConfig
from modeling_showattend.image_processing_showattend import ShowAttendImageProcessor
from modeling_showattend.modeling_showattend import ShowAttendForConditionalGeneration
from modeling_showattend.processing_showattend import ShowAttendProcessor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["a", "photo", "of", "the", "dog", "run", "##s", "on", "grass", "[", "]", "sep", "."]
PAD, UNK, CLS, SEP, MASK, A, PHOTO, OF, THE, DOG, RUN, S, ON, GRASS, *_ = range(len(WORDS))


@pytest.fixture
def processor() -> ShowAttendProcessor:
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})
    return ShowAttendProcessor(ShowAttendImageProcessor(), tokenizer)


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


# --- images and prefixes ---------------------------------------------------------------------------------------------


def test_images_alone(processor: ShowAttendProcessor, image: Image.Image) -> None:
    batch = processor([image, image], return_tensors="pt")
    assert list(batch) == ["pixel_values"]
    assert torch.equal(batch["pixel_values"], processor.image_processor([image] * 2, return_tensors="pt").pixel_values)
    unnormalised = processor(image, do_normalize=False, return_tensors="pt")["pixel_values"]
    assert unnormalised.min() >= 0 and unnormalised.max() <= 1


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of", [[CLS, A, PHOTO, OF]] * 2),
        ("A Photo of", [[CLS, A, PHOTO, OF]] * 2),
        ("", [[CLS]] * 2),
        (["", ""], [[CLS]] * 2),
        (["a dog", "the dog"], [[CLS, A, DOG], [CLS, THE, DOG]]),
        (("a dog", "the zebra"), [[CLS, A, DOG], [CLS, THE, UNK]]),
    ],
)
def test_prefixes_end_without_sep(
    text: Any, ids: list[list[int]], processor: ShowAttendProcessor, image: Image.Image
) -> None:
    batch = processor([image, image], text=text, padding=True, return_tensors="pt")
    assert sorted(batch) == ["decoder_input_ids", "pixel_values"]
    assert batch["decoder_input_ids"].dtype == torch.int64
    assert batch["decoder_input_ids"].tolist() == ids


def test_a_special_token_typed_in_a_text_is_text(processor: ShowAttendProcessor) -> None:
    assert SEP not in processor(text="a [SEP] dog")["decoder_input_ids"][0]
    assert processor(text_target="a [SEP] dog")["labels"][0].count(SEP) == 1


def test_prefixes_of_different_lengths_are_refused(processor: ShowAttendProcessor, image: Image.Image) -> None:
    with pytest.raises(ValueError, match=r"same number of tokens.*LSTM.*2, 3"):
        processor([image, image], text=["a photo", "the dog run"], padding=True, return_tensors="pt")


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_start_after_cls_and_end_with_sep(processor: ShowAttendProcessor, image: Image.Image) -> None:
    batch = processor([image, image], text_target=["a dog runs on grass", "the dog"], return_tensors="pt")
    assert sorted(batch) == ["labels", "pixel_values"]
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"].tolist() == [[A, DOG, RUN, S, ON, GRASS, SEP], [THE, DOG, SEP] + [-100] * 4]


def test_long_captions_are_cut_and_keep_sep(processor: ShowAttendProcessor) -> None:
    long = " ".join(["dog"] * 50)
    assert processor(text_target=long)["labels"] == [[DOG] * 28 + [SEP]]  # with [CLS], 30 tokens
    assert processor(text_target=long, max_length=4)["labels"] == [[DOG, DOG, SEP]]


def test_padding_of_labels(processor: ShowAttendProcessor) -> None:
    labels = processor(text_target=["the dog"], padding="max_length", return_tensors="pt")["labels"]
    assert labels.tolist() == [[THE, DOG, SEP] + [-100] * 26]
    processor.tokenizer.padding_side = "left"  # no effect: the labels' first token follows [CLS]
    labels = processor(text_target=["the dog", "dog"])["labels"]
    assert labels == [[THE, DOG, SEP], [DOG, SEP, -100]]


def test_labels_decode_to_the_caption(processor: ShowAttendProcessor) -> None:
    labels = processor(text_target="A dog runs on grass")["labels"]
    assert processor.batch_decode(labels, skip_special_tokens=True) == ["a dog runs on grass"]
    assert processor.decode(labels[0], skip_special_tokens=True) == "a dog runs on grass"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "at least one of images, text and text_target"),
        ({"text": ["a"]}, r"text must hold one string for each of 2 images, but holds 1"),
        ({"text_target": "a"}, r"text_target must hold one string for each of 2 images, but holds 1"),
        ({"text_target": ["a", None]}, "text_target must hold strings, but number 2 is of type NoneType"),
        ({"text": 3}, "text must hold strings, but number 1 is of type int"),
        ({"text": []}, "but holds 0"),
    ],
)
def test_wrong_texts_are_refused(
    inputs: dict[str, Any], message: str, processor: ShowAttendProcessor, image: Image.Image
) -> None:
    with pytest.raises(ValueError, match=message):
        processor([image, image] if inputs else None, **inputs)


def test_an_unreadable_image_is_named(processor: ShowAttendProcessor, image: Image.Image) -> None:
    with pytest.raises(OSError, match=r"missing\.jpg"):
        processor([image, "missing.jpg"], text="a")


# --- with the model and transformers' own pipeline -------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> ShowAttendForConditionalGeneration:
    torch.manual_seed(0)
    config = ShowAttendConfig(
        encoder_name="resnet18",
        embed_size=8,
        attention_dim=8,
        decoder_dim=8,
        vocab_size=len(WORDS),
        pad_token_id=PAD,
        bos_token_id=CLS,
        eos_token_id=SEP,
    )
    return ShowAttendForConditionalGeneration(config).eval()


def test_a_batch_goes_into_the_model(
    model: ShowAttendForConditionalGeneration, processor: ShowAttendProcessor, image: Image.Image
) -> None:
    training = processor([image, image], text_target=["a dog runs", "the dog"], return_tensors="pt")
    assert torch.isfinite(model(**training).loss)
    prompt = processor(image, text="a photo of", return_tensors="pt")
    assert model.generate(**prompt)[0, :4].tolist() == [CLS, A, PHOTO, OF]


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ("one", ""),
        ("one", "A photo of"),
        ("two", ["a photo", "the dog"]),
        ("nested", ["a photo", "the dog"]),
    ],
)
def test_image_text_to_text_pipeline(
    images: str,
    text: Any,
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    image: Image.Image,
    tmp_path: Path,
) -> None:
    pipe = ImageTextToTextPipeline(model=model, processor=processor)
    path = tmp_path / "photo.png"
    image.save(path)
    given: Any = {"one": str(path), "two": [image, str(path)], "nested": [[image], [image]]}[images]
    records = pipe(given, text=text, max_new_tokens=4)
    texts = [text] * len(records) if isinstance(text, str) else text
    assert len(records) == (1 if images == "one" else 2)
    inputs = processor([image] * len(records), text=text, return_tensors="pt")
    captions = processor.batch_decode(model.generate(**inputs, max_new_tokens=4), skip_special_tokens=True)
    for record, prefix, caption in zip(records, texts, captions, strict=True):
        assert record["input_text"] == prefix and record["generated_text"].startswith(prefix)
        assert record["generated_text"].lower() == caption


# --- saved folders ---------------------------------------------------------------------------------------------------

RELOAD = """
import shutil
import sys
sys.modules["modeling_showattend"] = None  # importing the package fails, even where it is installed
import torch
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

for source, target in (("0", "1"), ("1", "2")):
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
    assert type(tokenizer).__name__ == type(processor.tokenizer).__name__ == "BertTokenizer"
    assert len(tokenizer) == len(processor.tokenizer)
    batch = processor("photo.png", text="a photo", text_target="a dog runs", return_tensors="pt")
    for options in ({}, {"use_fast": True}, {"use_fast": False}, {"backend": "pil"}, {"backend": "torchvision"}):
        image_processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=True, **options)
        assert type(image_processor).__name__ == "ShowAttendImageProcessor"
        pixel_values = image_processor("photo.png", return_tensors="pt")["pixel_values"]
        assert torch.equal(pixel_values, batch["pixel_values"]), options
    processor.save_pretrained(target)
    image_processor.save_pretrained("images" + target)
    shutil.rmtree(source)  # what the next folder lacks cannot come from this one
    alone = AutoImageProcessor.from_pretrained("images" + target, trust_remote_code=True)
    assert torch.equal(alone("photo.png", return_tensors="pt")["pixel_values"], batch["pixel_values"])
torch.save(dict(batch), "batch.pt")
"""


def test_a_folder_loads_without_the_package_and_can_be_saved_again(
    processor: ShowAttendProcessor, image: Image.Image, tmp_path: Path
) -> None:
    processor.image_processor = ShowAttendImageProcessor(
        size={"shortest_edge": 64}, do_center_crop=True, crop_size=48, do_normalize=False
    )
    image.save(tmp_path / "photo.png")
    expected = processor(image, text="a photo", text_target="a dog runs", return_tensors="pt")
    assert expected["pixel_values"].shape == (1, 3, 48, 48)
    processor.save_pretrained(tmp_path / "0")
    processor.save_pretrained(tmp_path / "0")  # saving twice changes nothing
    files = {file.name for file in (tmp_path / "0").iterdir()}

    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", RELOAD]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

    actual = torch.load(tmp_path / "batch.pt")
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert {file.name for file in (tmp_path / "2").iterdir()} == files
    for name in ("processor_config.json", "tokenizer_config.json"):
        config = json.loads((tmp_path / "2" / name).read_text())
        assert config["auto_map"] == {"AutoProcessor": "processing_showattend.ShowAttendProcessor"}
    config = json.loads((tmp_path / "2" / "processor_config.json").read_text())["image_processor"]
    assert config["auto_map"]["AutoImageProcessor"] == "image_processing_showattend.ShowAttendImageProcessor"
    assert (config["size"], config["do_normalize"]) == ({"shortest_edge": 64}, False)


def test_what_wordpiece_splits_is_joined_again() -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "s", "t", "shirt", "'", "-", ",", "3", "4", "/"]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    processor = ShowAttendProcessor(ShowAttendImageProcessor(), tokenizer)
    caption = "a man's t-shirt, 3/4"
    ids = tokenizer(caption)["input_ids"]
    assert processor.decode(ids, skip_special_tokens=True) == caption
    assert processor.batch_decode([ids, ids], skip_special_tokens=True) == [caption, caption]
    assert processor.post_process_image_text_to_text([ids]) == [caption]
