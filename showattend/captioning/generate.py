"""A stream of photos to a stream of captions: threads read the photos of the next batches while the network works."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import GenerationConfig

from modeling_showattend.modeling_showattend import ShowAttendForConditionalGeneration
from modeling_showattend.processing_showattend import ShowAttendProcessor

Key = TypeVar("Key")


class Caption(NamedTuple):
    text: str
    score: float  # mean log probability of a word piece


def best_device() -> torch.device:
    """The accelerator, each process of a launch its own; the CPU if there is none, or `accelerate` is told so."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count())


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on the CUDA GPUs that compute in it, float16 on older ones, float32 elsewhere.

    Not every CPU with bfloat16 instructions is faster with them, and none gives exactly the captions of float32.
    """
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def check_settings(
    config: GenerationConfig, processor: ShowAttendProcessor, prefix: str | None, **generation: Any
) -> dict[str, Any]:
    """Settle what `generate` is to do before the first photo is read.

    Args:
        config: The checkpoint's, which holds wherever `generation` has nothing.
        prefix: How the captions are to begin.
        generation: Settings of `generate`.

    Returns:
        `generation`, with as many beams as there are to be captions of a photo, unless they are sampled.

    Raises:
        ValueError: If the settings contradict each other or the checkpoint cannot begin with the prefix.
    """
    wanted = generation.get("num_return_sequences", 1)
    if generation.get("do_sample"):
        generation["num_beams"] = 1
    elif "num_beams" not in generation:
        generation["num_beams"] = max(wanted, config.num_beams or 1)
    beams = generation["num_beams"]
    if beams < wanted and not generation.get("do_sample"):
        raise ValueError(f"--num-captions {wanted} needs at least as many --num-beams, not {beams}")
    if "length_penalty" in generation and beams == 1:
        raise ValueError("--length-penalty chooses among beams: add --num-beams, 3 for example")
    if prefix is not None:
        pieces = processor(text=prefix)["decoder_input_ids"][0]
        if processor.tokenizer.unk_token_id in pieces:
            raise ValueError(f"--prefix {prefix!r} holds a word that the checkpoint's vocabulary does not know")
        longest = generation.get("max_length", config.max_length)
        if longest is not None and len(pieces) >= longest:
            raise ValueError(f"--prefix has {len(pieces)} word pieces, which leaves none for a caption of {longest}")
    return generation


def caption_stream(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    photos: Iterable[tuple[Key, Any]],
    batch_size: int = 32,
    prefix: str | None = None,
    **generation: Any,
) -> Iterator[tuple[Key, list[Caption] | Exception]]:
    """Caption photos in batches, in their order and in constant memory.

    Args:
        photos: Each a key, which is handed through, and what the image processor reads: a path, a URL, a file.
        prefix: How the captions begin.
        generation: Settings of `generate`.

    Yields:
        The key with the photo's captions, the best first; or with the reason why the photo could not be read.
    """
    photos = iter(photos)
    reading: deque[tuple[Key, Future[torch.Tensor]]] = deque()
    readers = ThreadPoolExecutor(thread_name_prefix="photo-reader")
    try:
        while True:
            for key, source in islice(photos, 3 * batch_size - len(reading)):
                reading.append((key, readers.submit(_read, processor, source)))
            if not reading:
                return
            batch = [reading.popleft() for _ in range(min(batch_size, len(reading)))]
            yield from _caption_batch(model, processor, batch, prefix, generation)
    finally:
        readers.shutdown(wait=False, cancel_futures=True)


def _read(processor: ShowAttendProcessor, source: Any) -> torch.Tensor:
    return processor.image_processor(source, return_tensors="pt")["pixel_values"]  # (1, 3, height, width)


def _caption_batch(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    batch: list[tuple[Key, Future[torch.Tensor]]],
    prefix: str | None,
    generation: dict[str, Any],
) -> list[tuple[Key, list[Caption] | Exception]]:
    outcomes: list[list[Caption] | Exception] = []
    by_size: dict[torch.Size, list[int]] = {}  # photos of one size unless the processor keeps their proportions
    for number, (_, future) in enumerate(batch):
        error = future.exception()
        if error is None:
            by_size.setdefault(future.result().shape, []).append(number)
        elif not isinstance(error, OSError | ValueError):
            raise error
        outcomes.append(error or [])
    for numbers in by_size.values():
        pixel_values = torch.cat([batch[number][1].result() for number in numbers])
        for number, captions in zip(
            numbers, _generate(model, processor, pixel_values, prefix, generation), strict=True
        ):
            outcomes[number] = captions
    return [(key, outcome) for (key, _), outcome in zip(batch, outcomes, strict=True)]


@torch.inference_mode()
def _generate(
    model: ShowAttendForConditionalGeneration,
    processor: ShowAttendProcessor,
    pixel_values: torch.Tensor,  # (photos, 3, height, width)
    prefix: str | None,
    generation: dict[str, Any],
) -> list[list[Caption]]:
    start = processor(text=[prefix or ""] * len(pixel_values), return_tensors="pt")["decoder_input_ids"]
    encoder_outputs = model.encoder(pixel_values=pixel_values.to(model.device))
    sequences = model.generate(
        encoder_outputs=encoder_outputs, decoder_input_ids=start.to(model.device), **generation
    )  # (photos * captions of each, pieces)
    scores = _scores(model, encoder_outputs, sequences, start.shape[1]).tolist()
    texts = processor.batch_decode(sequences, skip_special_tokens=True)
    captions = list(map(Caption, texts, scores))
    of_each = len(captions) // len(pixel_values)
    groups = [captions[first : first + of_each] for first in range(0, len(captions), of_each)]
    if generation.get("do_sample", model.generation_config.do_sample):  # beam search has ranked its own
        groups = [sorted(group, key=lambda caption: -caption.score) for group in groups]
    return groups


def _scores(
    model: ShowAttendForConditionalGeneration, encoder_outputs: Any, sequences: torch.Tensor, prefix_length: int
) -> torch.Tensor:
    """The mean log probability of the generated pieces, `[SEP]` among them, untempered: (captions,)."""
    logits = model(encoder_outputs=encoder_outputs, decoder_input_ids=sequences[:, :-1]).logits[:, prefix_length - 1 :]
    pieces = sequences[:, prefix_length:]  # (captions, generated pieces)
    log_probabilities = logits.float().log_softmax(dim=-1).gather(2, pieces.unsqueeze(2)).squeeze(2)
    ends = pieces == model.config.eos_token_id
    generated = ends.cumsum(dim=1) - ends.long() == 0  # up to the first [SEP]; beams are filled up with more
    return (log_probabilities * generated).sum(dim=1) / generated.sum(dim=1)
