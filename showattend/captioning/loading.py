"""A captioner from a checkpoint, with torch, or from an exported folder, with ONNX Runtime."""

from typing import Any

from .exported import ExportedCaptioner, is_exported
from .stream import Captioner


def load(
    checkpoint: str,
    dtype: str = "auto",
    prefix: str | None = None,
    num_captions: int = 1,
    sample: bool = False,
    threads: int | None = None,
    **generation: Any,
) -> Captioner:
    """Load a captioner and check its settings. torch is imported only for a torch checkpoint.

    Args:
        checkpoint: A folder that `showattend export-onnx` wrote, or a captioner's folder or Hub id.
        dtype: float32, bfloat16, float16 or int8. auto: bfloat16 or float16 on GPUs, float32 on CPUs; of an exported
            captioner, the fastest precision that it holds.
        prefix: How every caption begins.
        sample: Draw the captions instead of searching for the best ones.
        threads: By default one per core.
        generation: `num_beams`, `length_penalty`, `max_length`, and with `sample` `temperature` and `top_p`.

    Raises:
        OSError: If there is no captioner, or it is damaged.
        ValueError: If a setting is wrong, or two contradict each other.
    """
    if is_exported(checkpoint):
        if sample:
            raise ValueError(
                "An exported captioner only searches for captions and cannot `sample` them: use its checkpoint."
            )
        precision = None if dtype == "auto" else dtype
        return ExportedCaptioner(checkpoint, precision, prefix, threads, num_captions=num_captions, **generation)
    if dtype == "int8":
        raise ValueError("`dtype` int8 is an invalid choice for a checkpoint: only exported captioners have it.")

    import torch

    from showattend.checkpoints import load_captioner

    from .generate import TorchCaptioner, best_device, fastest_dtype

    if threads is not None:
        torch.set_num_threads(threads)
    device = best_device()
    model, processor = load_captioner(checkpoint, fastest_dtype(device) if dtype == "auto" else getattr(torch, dtype))
    model.to(device)  # type: ignore[arg-type]
    return TorchCaptioner(
        model, processor, prefix, num_return_sequences=num_captions, do_sample=sample or None, **generation
    )
