"""Captioners of other architectures, tiny and random, evaluated like ours."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_flickr import COLOURS, ROOT, SHAPES, environment, make_folder
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from showattend.checkpoints import load_captioner
from showattend.commands import evaluate
from showattend.evaluation.captioners import PromptProcessor, load_any_captioner
from showattend.evaluation.evaluate import evaluate_checkpoint
from showattend.hub.model_card import add_evaluation

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCE = "a the dog cat photo of on grass red runs ball two"
WORDS = [*SPECIAL, *SENTENCE.split()]
PAD, CLS, SEP = 0, 2, 3
SIZE = {"height": 32, "width": 32}
pytestmark = pytest.mark.usefixtures("no_java")

VISION: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 32, "patch_size": 16}
TOKENS: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": CLS, "eos_token_id": SEP}
TEXT: dict[str, Any] = {"vocab_size": len(WORDS), "max_position_embeddings": 40, **TOKENS}


def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})


def vit_gpt2(folder: Path) -> Any:
    decoder = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(WORDS), n_positions=40, **TOKENS)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VISION), decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = CLS, PAD, SEP
    ViTImageProcessor(size=SIZE).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return VisionEncoderDecoderModel(config)


def blip(folder: Path) -> Any:
    text = {**VISION, **TEXT, "encoder_hidden_size": 16, "sep_token_id": SEP}
    BlipProcessor(BlipImageProcessor(size=SIZE), tokenizer()).save_pretrained(folder)
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=VISION))


def git(folder: Path) -> Any:
    image_processor = CLIPImageProcessor(size=SIZE, crop_size=SIZE)
    GitProcessor(image_processor, tokenizer()).save_pretrained(folder)
    return GitForCausalLM(GitConfig(vision_config=VISION, **VISION, **TEXT))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    images = make_folder(tmp_path / "data") / "photos"
    names = [f"{colour}_{shape}.jpg\n" for colour in COLOURS for shape in SHAPES]
    (images / "Flickr_8k.devImages.txt").write_text("".join(names[:7]))
    return images


def make(kind: Callable[[Path], Any], folder: Path) -> Any:
    """Save a captioner whose captions depend on the image."""
    torch.manual_seed(0)
    model = kind(folder).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", [vit_gpt2, blip, git])
def test_captions_are_those_of_generate(kind: Callable[[Path], Any], images: Path, tmp_path: Path) -> None:
    model = make(kind, tmp_path)
    figures = evaluate_checkpoint(str(tmp_path), str(images), tmp_path / "out", batch_size=3, num_beams=2, max_length=9)
    assert figures["images"] == 7 and figures["generation"]["num_beams"] == 2
    assert figures["intervals"].keys() == figures["metrics"].keys()
    processor = load_any_captioner(tmp_path)[1]
    captions = {row["image_id"]: row["caption"] for row in json.loads((tmp_path / "out" / "captions.json").read_text())}
    for name, caption in captions.items():
        inputs = processor([Image.open(images / "Images" / name)])
        assert inputs["pixel_values"].shape == (1, 3, 32, 32)
        sequences = model.generate(pixel_values=inputs["pixel_values"], num_beams=2, max_length=9)
        assert tokenizer().decode(sequences[0], skip_special_tokens=True) == caption
    assert len(set(captions.values())) > 1


@pytest.mark.parametrize("kind", [vit_gpt2, blip, git])
def test_two_processes_measure_what_one_does(kind: Callable[[Path], Any], images: Path, tmp_path: Path) -> None:
    """Of seven images one process gets four and the other three, in other batches."""
    make(kind, tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    prompt = [] if kind is vit_gpt2 else ["--prompt=a photo of"]
    shared = [f"--checkpoint={tmp_path}", f"--dataset={images}", "--batch-size=3", "--max-length=9", *prompt]
    assert evaluate.main([*shared, f"--output-dir={one}"]) == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(ROOT / "configs" / "accelerate_two_cpu_processes.yaml"), "-m", "showattend"]
    command = [*launch, "evaluate", *shared, f"--output-dir={two}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cider") == 1
    for name in ("captions.json", "figures.json"):
        assert (one / name).read_text() == (two / name).read_text()
    assert len({row["caption"] for row in json.loads((two / "captions.json").read_text())}) > 1


@pytest.mark.parametrize("kind", [blip, git])
def test_captions_without_their_prompt(kind: Callable[[Path], Any], images: Path, tmp_path: Path) -> None:
    model = make(kind, tmp_path)
    prompt = "A photo of"
    figures = evaluate_checkpoint(
        str(tmp_path), str(images), tmp_path / "out", batch_size=3, prompt=prompt, max_new_tokens=6
    )
    assert figures["generation"]["prompt"] == prompt
    captions = {row["image_id"]: row["caption"] for row in json.loads((tmp_path / "out" / "captions.json").read_text())}
    processor = load_any_captioner(tmp_path)[1]
    start = torch.tensor([[CLS, *(WORDS.index(word) for word in prompt.lower().split())]])
    if kind is blip:
        start = torch.cat([start, torch.tensor([[SEP]])], dim=1)  # which its generate cuts off
    decoder: Any = tokenizer()
    for name, caption in captions.items():
        pixel_values = processor([Image.open(images / "Images" / name)])["pixel_values"]
        sequences = model.generate(pixel_values=pixel_values, input_ids=start.clone(), max_new_tokens=6)
        whole = decoder.decode(sequences[0], skip_special_tokens=True)
        assert whole.startswith("a photo of") and whole == f"a photo of {caption}".strip()
    assert any(captions.values())


def test_ours_takes_a_prompt(
    tmp_path: Path,
    images: Path,
    make_model: Callable[..., ShowAttendForConditionalGeneration],
    processor: ShowAttendProcessor,
) -> None:
    make_model().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    evaluate_checkpoint(str(tmp_path), str(images), tmp_path / "out", prompt="a photo of", max_length=9, num_beams=1)
    model, processor = load_captioner(tmp_path)
    for row in json.loads((tmp_path / "out" / "captions.json").read_text()):
        image = Image.open(images / "Images" / row["image_id"])
        inputs = processor(images=image, text="a photo of", return_tensors="pt")
        [whole] = processor.batch_decode(model.generate(**inputs, max_length=9, num_beams=1), skip_special_tokens=True)
        assert whole == f"a photo of {row['caption']}".strip()


def test_ours_joins_split_words_after_a_prompt(
    make_model: Callable[..., ShowAttendForConditionalGeneration], processor: ShowAttendProcessor
) -> None:
    words = [*SPECIAL, "a", "man", "'", "s", "t", "-", "shirt"]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    ours = ShowAttendProcessor(processor.image_processor, tokenizer)
    sequences = tokenizer(["a man's t-shirt"])["input_ids"]
    assert PromptProcessor(make_model(), ours, tokenizer, "a man's").batch_decode(sequences) == ["t-shirt"]


def test_what_is_not_a_captioner(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"There is no checkpoint folder .*nowhere"):
        load_any_captioner(tmp_path / "nowhere")
    with pytest.raises(OSError, match="holds no captioner that can be loaded"):
        load_any_captioner(tmp_path)
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(OSError, match="holds no captioner that can be loaded: a gpt2 model does not caption images"):
        load_any_captioner(tmp_path)
    make(vit_gpt2, tmp_path)
    with pytest.raises(OSError, match="a vision-encoder-decoder model takes no prompt"):
        load_any_captioner(tmp_path, prompt="a photo of")
    figures = {"checkpoint": str(tmp_path)}
    with pytest.raises(ValueError, match=r"no card .*README\.md, and none is made for a vision-encoder-decoder model"):
        add_evaluation(tmp_path / "README.md", figures)
    config = json.loads((tmp_path / "config.json").read_text())
    config["decoder"]["n_layer"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(OSError, match=r"its weights lack decoder\.transformer\.h\.1"):
        load_any_captioner(tmp_path)
