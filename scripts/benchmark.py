"""Measures the speed of the captioner on this machine's CPU.

`benchmark.py training`, a training step: ours beside the textbook loop (`showattend/training/textbook.py`),
which has the same parameters and computes the same loss. The captions are random, of lengths like Flickr8k's, and
batches hold captions of similar length, as in training.

`benchmark.py feature-cache IMAGE [IMAGE ...]`, a training step in bfloat16, 8 images with 5 captions each, with cached
features of the frozen stages, and one that decodes and encodes its images in the same process: what `--feature-cache
none` costs without workers.

`benchmark.py captioning IMAGE [IMAGE ...]`, a caption of a trained captioner: beside the textbook loop, and beside the
encoder's pass alone, the least that a caption of these weights can take. `--onnx FOLDER` adds an exported captioner.

`benchmark.py files FOLDER`, images per second from files on disk, as `showattend caption` captions them.

Each cell of `training` and each line of `captioning` and `files` is measured in a process of its own.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import torch

from modeling_showattend import ShowAttendConfig, ShowAttendForConditionalGeneration, ShowAttendImageProcessor
from modeling_showattend.image_processing_showattend import load_image
from showattend import DEFAULT_CHECKPOINT
from showattend.captioning.inputs import image_suffixes, list_files
from showattend.captioning.loading import load
from showattend.captioning.stream import caption_stream
from showattend.checkpoints import load_captioner
from showattend.command_line import whole_number
from showattend.data.batches import POOL
from showattend.export.onnx_captioner import SETTINGS_FILE, OnnxCaptioner
from showattend.training.textbook import textbook_caption, textbook_loss

WARM_UP_STEPS = 3
CAPTION_LENGTH = 30  # tokens at most, including [CLS] and [SEP]


# --- a training step ---


def caption_batches(batch_size: int, steps: int, vocab_size: int) -> list[torch.Tensor]:
    """Labels of `steps` batches, (batch_size, longest) each, that stand for all lengths of a pool sorted by length."""
    torch.manual_seed(0)  # the same captions for every line of the table
    # Flickr8k's captions without their final stops: 12 +- 4 tokens, including [SEP].
    lengths = torch.distributions.Gamma(9.0, 9.0 / 12.0).sample((POOL * batch_size,))
    pool = lengths.round().long().clamp(3, CAPTION_LENGTH - 1).sort().values.view(POOL, batch_size)
    batches = []
    for number in torch.linspace(0, POOL - 1, steps).round().long()[torch.randperm(steps)]:
        longest = int(pool[number].max())
        labels = torch.randint(1, vocab_size, (batch_size, longest))
        batches.append(labels.masked_fill(torch.arange(longest) >= pool[number].unsqueeze(1), -100))
    return batches


def median_step(
    model: ShowAttendForConditionalGeneration,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    batches: list[torch.Tensor],
    dtype: str = "bfloat16",
) -> float:
    """Milliseconds of the median step: loss of a batch's labels, gradients, optimizer."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    times = []
    for labels in batches[:WARM_UP_STEPS] + batches:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of(labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[-len(batches) :])


def measure_training(loop: str, dtype: str, vocab_size: int, batch_size: int, steps: int) -> tuple[float, float]:
    """Milliseconds of the median step, and the process's peak memory in MiB."""
    torch.manual_seed(0)
    model = ShowAttendForConditionalGeneration(ShowAttendConfig(vocab_size=vocab_size)).train()
    image_features = torch.randn(batch_size, 49, model.config.encoder_dim).relu()

    def loss_of(labels: torch.Tensor) -> torch.Tensor:
        if loop == "textbook":
            return textbook_loss(model, image_features, labels, CAPTION_LENGTH)
        return model(image_features=image_features, labels=labels, skip_logits=True).loss

    milliseconds = median_step(model, loss_of, caption_batches(batch_size, steps, vocab_size), dtype)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return milliseconds, peak


def training_table(batch_size: int, vocab_sizes: list[int], dtypes: list[str], steps: int) -> str:
    lines = [
        "| vocabulary | precision | textbook, ms | ours, ms | ratio | textbook, peak MiB | ours, peak MiB |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for vocab_size in vocab_sizes:
        for dtype in dtypes:
            setting = dtype, vocab_size, batch_size, steps
            textbook, textbook_peak = in_own_process(measure_training, "textbook", *setting)
            ours, ours_peak = in_own_process(measure_training, "ours", *setting)
            lines.append(
                f"| {vocab_size:,} | {dtype} | {textbook:.0f} | {ours:.0f} | {textbook / ours:.1f} "
                f"| {textbook_peak:,.0f} | {ours_peak:,.0f} |"
            )
    return "\n".join(lines)


# --- a training step from images ---


IMAGES_PER_STEP, CAPTIONS_PER_IMAGE = 8, 5


def measure_images(stages: int, cached: bool, images: list[str], steps: int) -> float:
    """Milliseconds of the median step in bfloat16, by the encoder's trained stages."""
    torch.manual_seed(0)
    model = ShowAttendForConditionalGeneration(ShowAttendConfig(vocab_size=4000, finetune_last_stages=stages)).train()
    processor = ShowAttendImageProcessor()
    files: Any = [images[number % len(images)] for number in range(IMAGES_PER_STEP)]
    with torch.no_grad():
        features = model.encoder.frozen_features(processor(files, return_tensors="pt")["pixel_values"]).half()

    def loss_of(labels: torch.Tensor) -> torch.Tensor:
        inputs = {"image_features": features} if cached else processor(files, return_tensors="pt")
        return model(**inputs, labels=labels, skip_logits=True).loss

    return median_step(model, loss_of, caption_batches(IMAGES_PER_STEP * CAPTIONS_PER_IMAGE, steps, 4000))


def feature_cache_table(images: list[str], steps: int) -> str:
    lines = ["| trained stages | features cached, ms | decoded and encoded, ms |", "|---:|---:|---:|"]
    for stages in (0, 1, 2):
        cached, encoded = (measure_images(stages, cached, images, steps) for cached in (True, False))
        lines.append(f"| {stages} | {cached:.0f} | {encoded:.0f} |")
    return "\n".join(lines)


# --- a caption ---

BATCHES_AND_BEAMS = [(1, 1), (1, 5), (32, 1), (32, 5)]
TORCH_VARIANTS = ["textbook", "float32", "bfloat16", "compiled"]


def median_seconds(work: Callable[[], object], seconds: float) -> float:
    """The median of as many runs as fit into the time, at least three, after one to warm up."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_captioning(
    variant: str, checkpoint: str, onnx: str | None, paths: list[str], seconds: float
) -> list[tuple[float, float] | None]:
    """Seconds of a batch, and of the float32 encoder alone on it, for each of BATCHES_AND_BEAMS that it can do."""
    dtype = torch.bfloat16 if variant == "bfloat16" else torch.float32
    model, processor = load_captioner(checkpoint, dtype=dtype)
    encoder = load_captioner(checkpoint)[0].encoder
    one_by_one = {"textbook": textbook_caption}.get(variant)
    captioner = None
    if variant not in TORCH_VARIANTS:
        captioner = OnnxCaptioner.from_pretrained(str(onnx), precision=variant.removeprefix("ONNX, "))
    if variant == "compiled":
        # The weights no longer change: they become constants of the code, in the layout that it reads.
        torch._inductor.config.freezing = True
        torch._dynamo.config.recompile_limit = 64  # every cell of the table has shapes of its own
        model.compile()
        model.encoder.compile()
    results: list[tuple[float, float] | None] = []
    for batch_size, num_beams in BATCHES_AND_BEAMS:
        if batch_size > 1 and one_by_one:
            results.append(None)
            continue
        files = [paths[number % len(paths)] for number in range(batch_size)]
        # As large as the network takes them: only ONNX's times include the resizing, which is then next to nothing.
        size = processor.image_processor.size
        images = [load_image(file).resize((size["width"], size["height"])) for file in files]
        pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]

        def caption(
            images: list[Any] = images, pixel_values: torch.Tensor = pixel_values, num_beams: int = num_beams
        ) -> object:
            if captioner:
                return captioner.caption_batch(images, num_beams=num_beams)
            if one_by_one:
                return one_by_one(model, pixel_values, num_beams=num_beams)
            return model.generate(pixel_values=pixel_values, num_beams=num_beams)

        def encode(pixel_values: torch.Tensor = pixel_values) -> object:
            return encoder(pixel_values=pixel_values)

        with torch.inference_mode():
            # The encoder before and after: a machine that slows down meanwhile slows both.
            alone = [median_seconds(encode, seconds / 2)]
            whole = median_seconds(caption, seconds)
            alone.append(median_seconds(encode, seconds / 2))
        results.append((whole, statistics.mean(alone)))
    return results


def measure_files(checkpoint: str, dtype: str, files: list[str], num_beams: int) -> tuple[float, int]:
    """Images per second from files on disk, as `showattend caption` captions them, and how many could not be read."""
    captioner = load(checkpoint, dtype, num_beams=num_beams)
    list(caption_stream(captioner, ((file, file) for file in files[:32])))  # to warm up
    start = time.perf_counter()
    outcomes = [outcome for _, outcome in caption_stream(captioner, ((file, file) for file in files))]
    seconds = time.perf_counter() - start
    return len(files) / seconds, sum(isinstance(outcome, Exception) for outcome in outcomes)


def precisions_in(onnx: str | None) -> list[str]:
    return list(json.loads((Path(onnx) / SETTINGS_FILE).read_text())["files"]) if onnx else []


def files_table(checkpoint: str, onnx: str | None, images: list[str], num_beams: int) -> str:
    files = list(list_files(images, image_suffixes(), print))
    variants = [("torch", str(checkpoint), dtype) for dtype in ("float32", "bfloat16")]
    variants += [("ONNX", str(onnx), precision) for precision in precisions_in(onnx)]
    lines = [
        f"| {len(files):,} files, {num_beams} beams, batch 32 | images per second | times the first |",
        "|---|---:|---:|",
    ]
    first = 0.0
    for library, folder, dtype in variants:
        rate, errors = in_own_process(measure_files, folder, dtype, files, num_beams)
        first = first or rate
        lines.append(f"| {library}, {dtype} | {rate:.1f} | {rate / first:.1f} |")
    return "\n".join([*lines, "", f"{errors} of the files could not be read."])


def captioning_table(checkpoint: str, onnx: str | None, images: list[str], seconds: float) -> str:
    headings = [f"batch {size}, {'greedy' if beams == 1 else f'beam {beams}'}" for size, beams in BATCHES_AND_BEAMS]
    lines = [
        "| ms per image (times the encoder alone) | " + " | ".join(headings) + " |",
        "|---|" + "---:|" * len(headings),
    ]
    encoders: list[list[float]] = [[] for _ in headings]
    for variant in [*TORCH_VARIANTS, *(f"ONNX, {precision}" for precision in precisions_in(onnx))]:
        results = in_own_process(measure_captioning, variant, checkpoint, onnx, images, seconds)
        cells = []
        for (size, _), result, of_column in zip(BATCHES_AND_BEAMS, results, encoders, strict=True):
            if result is None:
                cells.append("")
                continue
            whole, alone = result
            of_column.append(1000 * alone / size)
            cells.append(f"{1000 * whole / size:.1f} ({whole / alone:.2f})")
        name = f"generate, {variant}" if variant in TORCH_VARIANTS[1:] else variant
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    medians = " | ".join(f"{statistics.median(times):.1f} (1)" for times in encoders)
    lines.insert(2, f"| the encoder alone, float32 | {medians} |")
    return "\n".join(lines)


def machine() -> str:
    """The conditions that a number depends on, in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; torch {torch.__version__}; {date.today()}"
    )


def in_own_process(measure: Callable[..., Any], *arguments: Any) -> Any:
    """So that neither memory nor compiled code mixes with other lines'."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    training = modes.add_parser("training", help="a training step, ours beside the textbook loop")
    training.add_argument("--batch-size", type=whole_number(1), default=32, help="default: 32")
    training.add_argument(
        "--vocab-sizes",
        type=whole_number(102),  # [CLS] is number 101
        nargs="+",
        default=[30522, 6644],
        help="default: 30522 as bert-base-uncased, and 6644, about as many as when pruned to Flickr8k",
    )
    training.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    training.add_argument("--steps", type=whole_number(1), default=25, help="timed steps per cell (default: 25)")
    feature_cache = modes.add_parser("feature-cache", help="a training step with a feature cache and without")
    feature_cache.add_argument("--steps", type=whole_number(1), default=12, help="timed steps per cell (default: 12)")
    captioning = modes.add_parser("captioning", help="a caption, beside the encoder's pass alone")
    captioning.add_argument("--seconds", type=float, default=5.0, help="for each cell, at least (default: 5)")
    files = modes.add_parser("files", help="images per second from files on disk, with torch and ONNX Runtime")
    files.add_argument("--num-beams", type=whole_number(1), default=5, help="default: 5")
    for mode in (captioning, files):
        mode.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="folder or Hub id")
        mode.add_argument("--onnx", metavar="FOLDER", help="what showattend export-onnx wrote")
    for mode in (feature_cache, captioning, files):
        mode.add_argument("images", nargs="+", metavar="IMAGE")
    options = vars(parser.parse_args())
    tables: dict[str, Callable[..., str]] = {
        "training": training_table,
        "feature-cache": feature_cache_table,
        "captioning": captioning_table,
        "files": files_table,
    }
    table = tables[options.pop("mode")](**options)
    print(f"{table}\n\n{machine()}\n`{shlex.join(['python', *sys.argv])}`")


if __name__ == "__main__":
    main()
