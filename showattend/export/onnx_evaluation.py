"""Evaluates an exported captioner: the scores of its captions, its speed and its size, beside those of torch."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm.auto import tqdm

from showattend.checkpoints import load_captioner
from showattend.data.captions import load_split
from showattend.evaluation.scoring import figures_of
from showattend.metrics import Metric, caption_metrics

from .onnx_captioner import OnnxCaptioner


def evaluate_onnx(
    folder: str | Path,
    dataset: str,
    precisions: Sequence[str] | None = None,
    checkpoint: str | None = None,
    split: str = "validation",
    image_column: str | None = None,
    caption_column: str | None = None,
    **generation: Any,
) -> dict[str, dict[str, Any]]:
    """Caption a split image by image, as an interactive program does.

    Args:
        folder: What `showattend export-onnx` wrote.
        dataset: As in [`load_captions`], as are `image_column` and `caption_column`.
        precisions: By default all that the folder holds.
        checkpoint: The captioner that was exported, to be evaluated as `torch`.
        generation: `num_beams`, `length_penalty` or `max_length`; what is left out is as exported.

    Returns:
        For each of them `megabytes` on the disk (of the graphs; torch's weights), `milliseconds` of the median image
        from the decoded image to the text, and the figures of [`figures_of`]. With a checkpoint also `as_torch`, the
        percentage of captions that are identical to torch's, and the differences to torch.
    """
    captioners: dict[str, tuple[float, Callable[[Any], str]]] = {}
    if checkpoint is not None:
        captioners["torch"] = _torch_captioner(checkpoint, generation)
    if precisions is None:
        precisions = list(OnnxCaptioner.from_pretrained(folder).settings["files"])
    for precision in precisions:
        captioners[precision] = _onnx_captioner(Path(folder), precision, generation)
    images = load_split(dataset, split, image_column, caption_column)
    references = dict(zip(images["image_id"], images["captions"], strict=True))

    captions: dict[str, dict[str, str]] = {name: {} for name in captioners}
    figures: dict[str, dict[str, Any]] = {}
    torch_metrics: tuple[str, dict[str, Metric]] | None = None
    for name, (megabytes, caption_of) in captioners.items():  # one after the other: their threads must not compete
        times = []
        for row in tqdm(images, desc=name, unit="image"):
            start = time.perf_counter()
            captions[name][row["image_id"]] = caption_of(row["image"])
            times.append(time.perf_counter() - start)
        figures[name] = {"megabytes": megabytes, "milliseconds": 1000 * median(times)}
        if checkpoint is not None:
            same = [caption == captions["torch"][image_id] for image_id, caption in captions[name].items()]
            figures[name]["as_torch"] = 100 * sum(same) / len(same)
        metrics = caption_metrics(captions[name], references)
        figures[name] |= figures_of(metrics, captions[name], references, torch_metrics)
        if name == "torch":
            torch_metrics = name, metrics
    return figures


def _onnx_captioner(folder: Path, precision: str, generation: dict[str, Any]) -> tuple[float, Callable[[Any], str]]:
    captioner = OnnxCaptioner.from_pretrained(folder, precision)
    megabytes = sum((folder / file).stat().st_size for file in captioner.settings["files"][precision].values()) / 1e6
    return megabytes, lambda image: captioner(image, **generation).text


def _torch_captioner(checkpoint: str, generation: dict[str, Any]) -> tuple[float, Callable[[Any], str]]:
    model, processor = load_captioner(checkpoint)
    megabytes = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6

    @torch.inference_mode()
    def caption_of(image: Any) -> str:
        inputs = processor(images=image, return_tensors="pt")
        return processor.batch_decode(model.generate(**inputs, **generation), skip_special_tokens=True)[0]

    return megabytes, caption_of
