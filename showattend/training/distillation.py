"""Captions that a captioner generates for its training images, to train on beside the human captions.

Five people describe one image in five ways, and a captioner trained on all of them hedges. Generated captions vary
less; training on the best of them brings greedy search closer to beam search (sequence-level knowledge distillation,
Kim and Rush, 2016, https://arxiv.org/abs/1606.07947, section 3.3).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from tqdm.auto import tqdm

from modeling_showattend import ShowAttendForConditionalGeneration, ShowAttendProcessor
from showattend.metrics import CiderMeteorReward

Captions = Mapping[str, Sequence[str]]  # image id -> its captions

BEAMS: dict[str, Any] = dict(num_beams=5, num_return_sequences=5, length_penalty=1.3, no_repeat_ngram_size=3)
SAMPLES: dict[str, Any] = dict(
    do_sample=True, num_return_sequences=10, temperature=0.8, top_k=0, num_beams=1, no_repeat_ngram_size=3
)
METEOR_WEIGHT = 5.0  # weight of METEOR in the score that selects captions
BATCH_SIZE = 64


def generate_captions(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    image_ids: Sequence[str],
    inputs_of: Callable[[Sequence[int]], Mapping[str, torch.Tensor]],
    path: Path,
    accelerator: Accelerator,
    max_length: int,
    seed: int,
) -> dict[str, list[str]]:
    """Generate captions by beam search and sampling, and append them to a file; an interrupted call resumes.

    Args:
        inputs_of: As in [`caption_images`].
        path: JSON Lines, one row per image: `image_id` and `captions`. It must come from the same model and arguments.

    Returns:
        image id -> its distinct captions, on every process.
    """
    model.eval()
    generated = broadcast_object_list([_read(path) if accelerator.is_main_process else None])[0]
    size = BATCH_SIZE * accelerator.num_processes
    bar = tqdm(total=len(image_ids), desc="captions", unit="image", disable=not accelerator.is_local_main_process)
    for start in range(0, len(image_ids), size):
        rows = range(start, min(start + size, len(image_ids)))
        if not all(image_ids[row] in generated for row in rows):
            set_seed(seed + start + accelerator.process_index)  # so that samples do not depend on interruptions
            mine = rows[accelerator.process_index :: accelerator.num_processes]
            captions = _generate(model, processor, inputs_of(mine), accelerator, max_length) if mine else []
            batch = dict(gather_object([(image_ids[row], texts) for row, texts in zip(mine, captions, strict=True)]))
            if accelerator.is_main_process:
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps({"image_id": name, "captions": batch[name]}) + "\n" for name in batch)
            generated |= batch
        bar.update(len(rows))
    bar.close()
    accelerator.wait_for_everyone()
    return generated


@torch.inference_mode()
def _generate(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    inputs: Mapping[str, torch.Tensor],
    accelerator: Accelerator,
    max_length: int,
) -> list[list[str]]:
    with accelerator.autocast():
        encoded = model.encoder(**{name: tensor.to(accelerator.device) for name, tensor in inputs.items()})
        images = len(encoded.last_hidden_state)
        captions: list[list[str]] = [[] for _ in range(images)]
        for search in (BEAMS, SAMPLES):
            tokens = model.generate(encoder_outputs=encoded, max_length=max_length, **search)
            texts = processor.batch_decode(tokens, skip_special_tokens=True)
            for number, text in enumerate(texts):
                captions[number * images // len(texts)].append(text)
    return [list(dict.fromkeys(texts)) for texts in captions]


def _read(path: Path) -> dict[str, list[str]]:
    """The rows of complete lines; a line that a kill left half-written is cut off."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    rows = map(json.loads, whole.splitlines())
    return {row["image_id"]: row["captions"] for row in rows}


def best_captions(generated: Captions, references: Captions, count: int) -> dict[str, list[str]]:
    """The `count` generated captions of each image that agree best with its references, best first."""
    pairs = [(image_id, caption) for image_id, captions in generated.items() for caption in captions]
    rewards = CiderMeteorReward(references, METEOR_WEIGHT).reward(*zip(*pairs, strict=True))
    ranked = sorted(zip(pairs, rewards.tolist(), strict=True), key=lambda scored: -scored[1])
    best: dict[str, list[str]] = {image_id: [] for image_id in generated}
    for (image_id, caption), _ in ranked:
        if len(best[image_id]) < count:
            best[image_id].append(caption)
    return best
