"""Evaluates a captioner: its loss on the references, and the scores of its captions."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.nn import functional as F
from tqdm.auto import tqdm

from modeling_showattend import ShowAttendForConditionalGeneration
from showattend.data.batches import ImageInputs, Item, collate
from showattend.data.captions import load_split
from showattend.generation import generation_config

from .captioners import load_any_captioner
from .scoring import check_output_dir, compared_captions, describe_data, write_figures


@torch.inference_mode()
def validation_loss(
    model: ShowAttendForConditionalGeneration,
    items: Sequence[Item],
    images: ImageInputs,
    accelerator: Accelerator,
    batch_size: int,
) -> dict[str, float]:
    """`loss`, the mean cross entropy per token with teacher forcing, and `token_accuracy`; padding is ignored."""
    model.eval()
    items = sorted(items, key=lambda item: item.length)  # batches of similar length
    sums = torch.zeros(3, dtype=torch.float64)
    for start in range(accelerator.process_index * batch_size, len(items), batch_size * accelerator.num_processes):
        batch = collate([(item, False) for item in items[start : start + batch_size]], images)
        labels = batch.labels.to(accelerator.device)
        inputs = {name: tensor.to(accelerator.device) for name, tensor in batch.inputs.items()}
        logits = model(**inputs, labels=labels).logits
        real = labels != -100
        logits, labels = logits[real].float(), labels[real]  # (tokens, vocab_size), (tokens,)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([loss, (logits.argmax(dim=-1) == labels).sum(), real.sum()]).cpu()
    total_loss, num_correct, num_tokens = map(sum, zip(*gather_object([sums.tolist()]), strict=True))
    return {"loss": total_loss / num_tokens, "token_accuracy": num_correct / num_tokens}


@torch.inference_mode()
def caption_images(
    model: Any,
    processor: Any,
    image_ids: Sequence[str],
    inputs_of: Callable[[Sequence[int]], Mapping[str, torch.Tensor]],
    accelerator: Accelerator,
    batch_size: int = 64,
    **generation: Any,
) -> dict[str, str]:
    """Caption images, divided among the processes.

    Args:
        inputs_of: Maps rows, the places in `image_ids`, to the inputs of `generate`: pixel_values or image_features.

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
    compare: str | Path | None = None,
    prompt: str | None = None,
    **generation: Any,
) -> dict[str, Any]:
    """Caption a split and score the captions; `accelerate launch` divides the images among processes.

    Args:
        checkpoint: Any captioner's folder or Hub id; with `prompt`, as in [`load_any_captioner`].
        dataset: As in [`load_captions`], as are `image_column` and `caption_column`.
        output_dir: As in [`write_figures`].
        compare: As in [`compared_captions`].
        generation: Settings of `generate`; the checkpoint's generation config has the defaults.

    Returns:
        What [`write_figures`] returns, with `checkpoint` and the `generation` settings. Empty on all processes but the
        main one.

    Raises:
        ValueError: If the dataset lacks the split, or a setting does not fit the captioner.
        OSError: If the checkpoint or the dataset cannot be read, or the folder cannot be written.
    """
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    check_output_dir(output_dir)
    model, processor = load_any_captioner(checkpoint, prompt)
    model.to(accelerator.device)
    # Record the checkpoint's defaults: the figures must state how the captions were decoded.
    settings = generation_config(model.generation_config, **generation)
    if (settings.num_return_sequences or 1) > 1 or settings.return_dict_in_generate:
        raise ValueError(
            "One caption per image is scored: leave `num_return_sequences` and `return_dict_in_generate` out."
        )
    names = ("num_beams", "length_penalty", "no_repeat_ngram_size", *generation)
    generation = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    with accelerator.main_process_first():
        images = load_split(dataset, split, image_column, caption_column)
    others = compared_captions(compare, images["image_id"])
    captions = caption_images(
        model,
        processor,
        images["image_id"],
        lambda rows: processor(images=images[rows]["image"], return_tensors="pt"),
        accelerator,
        batch_size=batch_size,
        **generation,
    )
    if not accelerator.is_main_process:
        return {}
    if prompt is not None:
        generation["prompt"] = prompt
    described = {"checkpoint": checkpoint, **describe_data(dataset, split), "generation": generation}
    return write_figures(described, captions, images, output_dir, others)
