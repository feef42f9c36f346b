"""Measures the speed of the captioner on this machine's CPU.

`benchmark.py training`, a training step: ours stands beside the textbook loop (`showattend/training/textbook.py`),
which has the same parameters and computes the same loss. The captions are random, of lengths like Flickr8k's, and
batches hold captions of like length, as in training.

`benchmark.py feature-cache PHOTO [PHOTO ...]`, a training step in bfloat16 with cached features of the frozen stages,
and one that decodes and encodes its images in the same process: what `--feature-cache none` costs without workers.

`benchmark.py captioning PHOTO [PHOTO ...]`, a caption of a trained captioner: beside the textbook loop, and beside the
encoder's pass alone, the least that a caption of these weights can take. `--onnx FOLDER` adds an exported captioner.

`benchmark.py files FOLDER`, images a second from files on disk, as `showattend caption` captions them.

Each line is measured in a process of its own, so that neither memory nor compiled code mixes.
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
from itertools import cycle, islice
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
from showattend.data.batches import POOL
from showattend.export.onnx_captioner import OnnxCaptioner
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


def measure_training(loop: str, dtype: str, vocab_size: int, batch_size: int, steps: int) -> tuple[float, float]:
    """Milliseconds of the median step (loss, gradients, optimizer), and the process's peak memory in MiB."""
    torch.manual_seed(0)
    model = ShowAttendForConditionalGeneration(ShowAttendConfig(vocab_size=vocab_size)).train()
    optimizer = torch.optim.Adam(model.decoder.parameters(), lr=3e-4, fused=True)
    image_features = torch.randn(batch_size, 49, model.config.encoder_dim).relu()
    batches = caption_batches(batch_size, steps, vocab_size)
    times = []
    for labels in batches[:WARM_UP_STEPS] + batches:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            if loop == "textbook":
                loss = textbook_loss(model, image_features, labels, CAPTION_LENGTH)
            else:
                loss = model(image_features=image_features, labels=labels, skip_logits=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return 1000 * statistics.median(times[-len(batches) :]), peak


def training_table(batch_size: int, vocab_sizes: list[int], dtypes: list[str], steps: int) -> str:
    lines = [
        "| vocabulary | precision | textbook, ms | ours, ms | ratio | textbook, peak MiB | ours, peak MiB |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for vocab_size in vocab_sizes:
        for dtype in dtypes:
            results = []
            for loop in ("textbook", "ours"):
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                    results.append(
                        process.submit(measure_training, loop, dtype, vocab_size, batch_size, steps).result()
                    )
            (textbook, textbook_peak), (ours, ours_peak) = results
            lines.append(
                f"| {vocab_size:,} | {dtype} | {textbook:.0f} | {ours:.0f} | {textbook / ours:.1f} "
                f"| {textbook_peak:,.0f} | {ours_peak:,.0f} |"
            )
    return "\n".join(lines)


# --- a training step from images ---


def measure_images(stages: int, cached: bool, photos: list[str], steps: int) -> float:
    """Milliseconds of the median step in bfloat16, 16 images with 5 captions each, by the encoder's trained stages."""
    torch.manual_seed(0)
    model = ShowAttendForConditionalGeneration(ShowAttendConfig(vocab_size=4000, finetune_last_stages=stages)).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    processor = ShowAttendImageProcessor()
    files = [photos[number % len(photos)] for number in range(16)]
    inputs: dict[str, torch.Tensor] = {}
    if cached:
        with torch.inference_mode():
            pixel_values = processor([load_image(file) for file in files], return_tensors="pt")["pixel_values"]
            features = model.encoder.frozen_features(pixel_values)
        inputs["image_features"] = features.half().clone()
    times = []
    for labels in caption_batches(16 * 5, WARM_UP_STEPS + steps, 4000):
        start = time.perf_counter()
        if not cached:
            inputs["pixel_values"] = processor([load_image(file) for file in files], return_tensors="pt")[
                "pixel_values"
            ]
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs, labels=labels, skip_logits=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[WARM_UP_STEPS:])


def feature_cache_table(photos: list[str], steps: int) -> str:
    lines = ["| trained stages | features cached, ms | decoded and encoded, ms |", "|---:|---:|---:|"]
    for stages in (0, 1, 2):
        cells = []
        for cached in (True, False):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                cells.append(process.submit(measure_images, stages, cached, photos, steps).result())
        lines.append(f"| {stages} | {cells[0]:.0f} | {cells[1]:.0f} |")
    return "\n".join(lines)


# --- a caption ---

BATCHES_AND_BEAMS = [(1, 1), (1, 5), (32, 1), (32, 5)]
TORCH_VARIANTS = ["textbook", "float32", "bfloat16", "compiled"]


def median_seconds(work: Callable[[], object], seconds: float) -> float:
    """Of as many runs as fit into the time, three at least, after one to warm up."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_captioning(
    variant: str, checkpoint: str, onnx: str | None, photos: list[str], seconds: float
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
        # The weights, which will not change any more, become part of the code, laid out as it reads them.
        torch._inductor.config.freezing = True
        torch._dynamo.config.recompile_limit = 64  # every cell of the table has shapes of its own
        model.compile()
        model.encoder.compile()
    results: list[tuple[float, float] | None] = []
    for batch_size, num_beams in BATCHES_AND_BEAMS:
        if batch_size > 1 and one_by_one:
            results.append(None)
            continue
        files = [photos[number % len(photos)] for number in range(batch_size)]
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
    """Images a second from files on disk, as `showattend caption` captions them, and how many could not be read."""
    captioner = load(checkpoint, dtype, num_beams=num_beams)
    list(caption_stream(captioner, ((file, file) for file in files[:32])))  # to warm up
    start = time.perf_counter()
    outcomes = [outcome for _, outcome in caption_stream(captioner, ((file, file) for file in files))]
    seconds = time.perf_counter() - start
    return len(files) / seconds, sum(isinstance(outcome, Exception) for outcome in outcomes)


def files_table(checkpoint: str, onnx: str | None, photos: list[str], num_beams: int) -> str:
    files = list(list_files(photos, image_suffixes(), print))
    variants = [("torch", str(checkpoint), dtype) for dtype in ("float32", "bfloat16")]
    if onnx:
        precisions = json.loads((Path(onnx) / "captioner.json").read_text())["files"]
        variants += [("ONNX", onnx, precision) for precision in precisions]
    lines = [
        f"| {len(files):,} files, {num_beams} beams, batch 32 | images a second | times the first |",
        "|---|---:|---:|",
    ]
    first = 0.0
    for library, folder, dtype in variants:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            rate, errors = process.submit(measure_files, folder, dtype, files, num_beams).result()
        first = first or rate
        lines.append(f"| {library}, {dtype} | {rate:.1f} | {rate / first:.1f} |")
    return "\n".join([*lines, "", f"{errors} of the files could not be read."])


def captioning_table(checkpoint: str, onnx: str | None, photos: list[str], seconds: float) -> str:
    precisions = list(json.loads((Path(onnx) / "captioner.json").read_text())["files"]) if onnx else []
    headings = [f"batch {size}, {'greedy' if beams == 1 else f'beam {beams}'}" for size, beams in BATCHES_AND_BEAMS]
    lines = [
        "| ms a photo (times the encoder alone) | " + " | ".join(headings) + " |",
        "|---|" + "---:|" * len(headings),
    ]
    encoders: list[list[float]] = [[] for _ in headings]
    for variant in [*TORCH_VARIANTS, *(f"ONNX, {precision}" for precision in precisions)]:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            results = process.submit(measure_captioning, variant, checkpoint, onnx, photos, seconds).result()
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
    files = [*islice(cycle(photos), 256)]
    rates = {beams: measure_files(str(checkpoint), "float32", files, beams)[0] for beams in (1, 5)}
    from_files = f"{rates[1]:.1f} greedy, {rates[5]:.1f} with 5 beams"
    return "\n".join([*lines, "", f"Photos a second from files, batch 32, float32: {from_files}."])


def machine() -> str:
    """The conditions that a number depends on, in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; torch {torch.__version__}; {date.today()}"
    )


def at_least(minimum: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least {minimum}")
        return int(text)

    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    training = modes.add_parser("training", help="a training step, ours beside the textbook loop")
    training.add_argument("--batch-size", "--batch_size", type=at_least(1), default=32, help="default: 32")
    training.add_argument(
        *["--vocab-sizes", "--vocab_sizes"],
        type=at_least(102),  # [CLS] is number 101
        nargs="+",
        default=[30522, 6644],
        help="default: 30522 as bert-base-uncased, and 6644 as when pruned to Flickr8k",
    )
    training.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    training.add_argument("--steps", type=at_least(1), default=25, help="timed steps for each cell (default: 25)")
    feature_cache = modes.add_parser("feature-cache", help="a training step with a feature cache and without")
    feature_cache.add_argument("photos", nargs="+", metavar="PHOTO")
    feature_cache.add_argument("--steps", type=at_least(1), default=10, help="timed steps for each cell (default: 10)")
    captioning = modes.add_parser("captioning", help="a caption, beside the encoder's pass alone")
    captioning.add_argument("photos", nargs="+", metavar="PHOTO")
    captioning.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="folder or Hub id")
    captioning.add_argument("--onnx", metavar="FOLDER", help="what scripts/export_onnx.py wrote")
    captioning.add_argument("--seconds", type=float, default=5.0, help="for each cell, at least (default: 5)")
    files = modes.add_parser("files", help="images a second from files on disk, with torch and ONNX Runtime")
    files.add_argument("photos", nargs="+", metavar="PHOTO", help="files and folders")
    files.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="folder or Hub id")
    files.add_argument("--onnx", metavar="FOLDER", help="what scripts/export_onnx.py wrote")
    files.add_argument("--num-beams", "--num_beams", type=at_least(1), default=5, help="default: 5")
    options = vars(parser.parse_args())
    mode = options.pop("mode")
    tables: dict[str, Callable[..., str]] = {
        "training": training_table,
        "feature-cache": feature_cache_table,
        "captioning": captioning_table,
        "files": files_table,
    }
    table = tables[mode](**options)
    print(f"{table}\n\n{machine()}\n`{shlex.join(['python', *sys.argv])}`")


if __name__ == "__main__":
    main()
