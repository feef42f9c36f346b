"""Prepares a run: its output folder, the model with its processor, and the labels."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import BertTokenizer

from modeling_showattend.configuration_showattend import ShowAttendConfig
from modeling_showattend.image_processing_showattend import ShowAttendImageProcessor
from modeling_showattend.modeling_showattend import ShowAttendForConditionalGeneration
from modeling_showattend.processing_showattend import ShowAttendProcessor
from showattend.checkpoints import load_captioner, weights_digest
from showattend.data.tokenization import load_tokenizer, prune_tokenizer
from showattend.metrics import score_captions

from .backbones import load_backbone
from .encoder_weights import load_encoder_weights
from .settings import TrainingSettings

# Settings that may differ when a run resumes: locations, the length of the run, reporting.
MAY_CHANGE = {
    *("output_dir", "preset", "cache_dir", "epochs", "early_stopping_patience", "num_workers", "report_to"),
    "checkpoint_every",
}
FREE_BYTES = 2e9  # two checkpoints and two models at once, with their optimizer
# Settings that are fields of the model's config: those of every run, and those of a new model alone.
OF_EVERY_MODEL = (
    *("dropout", "feature_dropout", "word_dropout", "doubly_stochastic_penalty", "label_smoothing"),
    *("finetune_last_stages", "attention_type"),
)
OF_A_NEW_MODEL = ("embed_size", "attention_dim", "decoder_dim", "context_gate", "deep_output")


def run_identity(settings: TrainingSettings, num_processes: int) -> dict[str, Any]:
    """What must stay the same when a run resumes.

    Steps are counted in batches of all processes, and averages and generated captions depend on the start's weights.
    """
    identity = dataclasses.asdict(settings) | {"num_processes": num_processes}
    if settings.init_from is not None and (Path(settings.init_from) / "model.safetensors").is_file():
        identity["weights_of_init_from"] = weights_digest(settings.init_from)
    return identity


def prepare_output_folder(output: Path, run: dict[str, Any]) -> None:
    """Write `settings.json`, and find out early what would otherwise fail after hours.

    Args:
        run: The [`run_identity`], which must match that of the run in the folder if there is one to resume.

    Raises:
        OSError: If the folder cannot be written or the disk is full.
        ValueError: If the folder holds a run with other settings.
    """
    resumable = any((output / name).exists() for name in ("checkpoint", "checkpoint.old", "generated.jsonl"))
    if resumable:
        earlier = json.loads((output / "settings.json").read_text())
        # A setting that is newer than the run had its default.
        earlier = {name: getattr(TrainingSettings, name, None) for name in run} | earlier
        changed = [name for name in run if run[name] != earlier[name] and name not in MAY_CHANGE]
        if changed:
            raise ValueError(
                f"{output} holds a run with another {', '.join(changed)}: resume it with its settings, or name "
                "another `output_dir`."
            )
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "settings.new").write_text(json.dumps(run, indent=2) + "\n")
        (output / "settings.new").replace(output / "settings.json")
    except OSError as error:
        raise OSError(f"`output_dir` {output} cannot be written: {error.strerror or error}.") from error
    free = shutil.disk_usage(output).free
    if free < FREE_BYTES:
        raise OSError(f"`output_dir` {output} has {free / 1e9:.1f} GB free; a run needs {FREE_BYTES / 1e9:.0f} GB.")


def check_metric(name: str) -> None:
    """Score a caption as a test: METEOR and SPICE need programs that may be missing."""
    if name in ("meteor", "spice") and name not in score_captions({"": "a dog"}, {"": ["a dog"]}):
        raise ValueError(
            f"`metric_for_best_model` {name} cannot be measured on this machine: it needs Java (and SPICE its "
            "models: see showattend/metrics/scores.py)."
        )


def build_model(
    settings: TrainingSettings, train_set: Dataset
) -> tuple[ShowAttendForConditionalGeneration, ShowAttendProcessor]:
    """The captioner to start from and its processor: new, or `init_from` with the settings' regularisers."""
    fields = {name: value for name in OF_EVERY_MODEL if (value := getattr(settings, name)) is not None}
    if settings.init_from is not None:
        return load_captioner(settings.init_from, **fields)
    fields |= {name: getattr(settings, name) for name in OF_A_NEW_MODEL}
    tokenizer: BertTokenizer = load_tokenizer(settings.tokenizer)
    if settings.prune_tokenizer:
        tokenizer = prune_tokenizer(tokenizer, (text for texts in train_set["captions"] for text in texts))
    if settings.encoder is None:
        image_processor = ShowAttendImageProcessor()
        fields |= {"encoder_name": settings.encoder_name, "stride_in_1x1": settings.stride_in_1x1}
    else:
        backbone, image_processor = load_backbone(settings.encoder)
        fields |= {"backbone_config": backbone.config}
    config = ShowAttendConfig(
        **fields,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    model = ShowAttendForConditionalGeneration(config)
    if settings.encoder is None:
        load_encoder_weights(model, settings.encoder_weights)
    else:
        model.encoder.backbone.load_state_dict(backbone.state_dict())
        model.encoder.grid_shape(image_processor.size["height"], image_processor.size["width"])  # an error if too small
    model.generation_config.max_length = settings.max_length
    return model, ShowAttendProcessor(image_processor, tokenizer)


def caption_labels(
    captions_of_images: Iterable[list[str]], processor: ShowAttendProcessor, settings: TrainingSettings
) -> list[list[list[int]]]:
    """The tokens of every caption of every image, [SEP] at the end."""
    labels = []
    for captions in captions_of_images:
        if not settings.keep_final_stop:
            captions = [re.sub(r"[\s.]+$", "", caption) for caption in captions]
        padded = processor(text_target=captions, max_length=settings.max_length)["labels"]
        labels.append([[token for token in tokens if token != -100] for tokens in padded])
    return labels
