"""Evaluates a captioner: its loss on people's captions, and the scores of its own."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.nn import functional as F
from tqdm.auto import tqdm

from modeling_showattend.metrics import caption_statistics, score_captions
from modeling_showattend.modeling_showattend import ShowAttendForConditionalGeneration
from modeling_showattend.processing_showattend import ShowAttendProcessor
from showattend.checkpoints import load_captioner
from showattend.data.batches import Item, collate
from showattend.data.captions import load_captions
from showattend.data.features import FeatureCache
from showattend.generation import generation_config


@torch.inference_mode()
def validation_loss(
    model: ShowAttendForConditionalGeneration,
    items: Sequence[Item],
    features: FeatureCache,
    accelerator: Accelerator,
    batch_size: int,
) -> dict[str, float]:
    """With teacher forcing, `loss`, the mean cross entropy of a token, and `token_accuracy`; padding is ignored."""
    model.eval()
    items = sorted(items, key=lambda item: item.length)  # batches of similar length
    sums = torch.zeros(3, dtype=torch.float64)
    for start in range(accelerator.process_index * batch_size, len(items), batch_size * accelerator.num_processes):
        batch = collate([(item, False) for item in items[start : start + batch_size]], features)
        labels = batch.labels.to(accelerator.device)
        logits = model(image_features=batch.image_features.to(accelerator.device), labels=labels).logits
        real = labels != -100
        logits, labels = logits[real].float(), labels[real]  # (tokens, vocab_size), (tokens,)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([loss, (logits.argmax(dim=-1) == labels).sum(), real.sum()]).cpu()
    total_loss, num_correct, num_tokens = map(sum, zip(*gather_object([sums.tolist()]), strict=True))
    return {"loss": total_loss / num_tokens, "token_accuracy": num_correct / num_tokens}


@torch.inference_mode()
def caption_images(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    image_ids: Sequence[str],
    inputs_of: Callable[[Sequence[int]], Mapping[str, torch.Tensor]],
    accelerator: Accelerator,
    batch_size: int = 64,
    **generation: Any,
) -> dict[str, str]:
    """Caption images, divided among the processes.

    Args:
        image_ids: The images' ids; a row is a place in this list.
        inputs_of: Maps rows to the inputs of `generate`: pixel_values or image_features.
        generation: Settings of `generate`.

    Returns:
        image id -> caption, of all images and on every process. It does not depend on the number of processes: no
        image is captioned twice.
    """
    model.eval()
    mine = range(accelerator.process_index, len(image_ids), accelerator.num_processes)
    captions: list[tuple[str, str]] = []
    bar = tqdm(total=len(mine), desc="captions", unit="image", disable=not accelerator.is_local_main_process)
    for start in range(0, len(mine), batch_size):
        rows = mine[start : start + batch_size]
        inputs: dict[str, Any] = {name: tensor.to(accelerator.device) for name, tensor in inputs_of(rows).items()}
        texts = processor.batch_decode(model.generate(**inputs, **generation), skip_special_tokens=True)
        captions += zip([image_ids[row] for row in rows], texts, strict=True)
        bar.update(len(rows))
    bar.close()
    gathered = dict(gather_object(captions))
    return {image_id: gathered[image_id] for image_id in image_ids}


def evaluate_checkpoint(
    checkpoint: str,
    dataset: str,
    output_dir: str | Path,
    split: str = "validation",
    batch_size: int = 32,
    image_column: str | None = None,
    caption_column: str | None = None,
    **generation: Any,
) -> dict[str, Any]:
    """Caption a split and score the captions; `accelerate launch` divides the images among processes.

    Args:
        checkpoint: A captioner's folder or Hub id.
        dataset: As in [`load_captions`], as are `image_column` and `caption_column`.
        output_dir: Where the main process writes `captions.json`, the captions in the COCO results format, and
            `figures.json`, what this function returns.
        generation: Settings of `generate`; the checkpoint's generation config has the defaults.

    Returns:
        `metrics`, the corpus scores times 100; `statistics` of the captions; `checkpoint`, `dataset` (a folder's name
        without its path), `split`, the number of `images` and the `generation` settings. Empty on all processes but
        the main one.

    Raises:
        ValueError: If the dataset lacks the split.
        OSError: If the checkpoint or the dataset cannot be read, or the folder not be written.
    """
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    output = Path(output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"output_dir {output} cannot be written: {error.strerror}.") from error
    model, processor = load_captioner(checkpoint)
    model.to(accelerator.device)
    # The figures must say how the captions were decoded, so the checkpoint's defaults are spelt out.
    settings = generation_config(model.generation_config, **generation)
    names = ("num_beams", "length_penalty", "no_repeat_ngram_size", *generation)
    generation = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    with accelerator.main_process_first():
        splits = load_captions(dataset, image_column=image_column, caption_column=caption_column)
    if split not in splits:
        raise ValueError(f"{dataset} has no {split} split: it has {', '.join(splits)}.")
    images = splits[split]
    captions = caption_images(
        model,
        processor,
        images["image_id"],
        lambda rows: {"pixel_values": processor(images=images[rows]["image"], return_tensors="pt")["pixel_values"]},
        accelerator,
        batch_size=batch_size,
        **generation,
    )
    if not accelerator.is_main_process:
        return {}
    references = dict(zip(images["image_id"], images["captions"], strict=True))
    figures = {
        "checkpoint": checkpoint,
        "dataset": Path(dataset).resolve().name if Path(dataset).exists() else dataset,
        "split": split,
        "images": len(captions),
        "generation": generation,
        "metrics": score_captions(captions, references),
        "statistics": caption_statistics(captions),
    }
    results = [{"image_id": image_id, "caption": caption} for image_id, caption in captions.items()]
    (output / "captions.json").write_text(json.dumps(results, indent=1) + "\n")
    (output / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures
