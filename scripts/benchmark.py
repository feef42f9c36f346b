"""Measures the speed of the captioner on this machine's CPU: `benchmark.py training`, a training step.

Ours stands beside the textbook loop (`modeling_showattend/textbook.py`), which has the same parameters and computes the
same loss. The captions are random, of lengths like Flickr8k's, and batches hold captions of like length, as in
training. Each line is measured in a process of its own, so that the peaks of memory do not mix.
"""

import argparse
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

import torch

from modeling_showattend import ShowAttendConfig, ShowAttendForConditionalGeneration
from modeling_showattend.batches import POOL
from modeling_showattend.textbook import textbook_loss

WARM_UP_STEPS = 3
CAPTION_LENGTH = 30  # word pieces at most, [CLS] and [SEP] counted


def caption_batches(batch_size: int, steps: int, vocab_size: int) -> list[torch.Tensor]:
    """Labels of `steps` batches, (batch_size, longest) each, that stand for all lengths of a pool sorted by length."""
    torch.manual_seed(0)  # the same captions for every line of the table
    # Flickr8k's captions without their final stops: 12 +- 4 word pieces, [SEP] counted.
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
    options = vars(parser.parse_args())
    options.pop("mode")
    table = training_table(**options)
    print(f"{table}\n\n{machine()}\n`{shlex.join(['python', *sys.argv])}`")


if __name__ == "__main__":
    main()
