"""The captioner that a run starts from, its processor, and the labels."""

import re
from collections.abc import Iterable

from datasets import Dataset
from PIL import Image
from transformers import BertTokenizer

from modeling_showattend.configuration_showattend import ShowAttendConfig
from modeling_showattend.image_processing_showattend import ShowAttendImageProcessor
from modeling_showattend.modeling_showattend import ShowAttendForConditionalGeneration
from modeling_showattend.processing_showattend import ShowAttendProcessor
from showattend.checkpoints import load_captioner, same_kind
from showattend.data.tokenization import load_tokenizer, prune_tokenizer

from .backbones import load_backbone
from .encoder_weights import load_encoder_weights
from .settings import TrainingSettings

# Settings that are fields of the model's config: those of every run, and those of a new model alone.
OF_EVERY_MODEL = (
    *("dropout", "feature_dropout", "word_dropout", "doubly_stochastic_penalty", "label_smoothing"),
    *("finetune_last_stages", "attention_type"),
)
OF_A_NEW_MODEL = ("embed_size", "attention_dim", "decoder_dim", "context_gate", "deep_output")


def build_model(
    settings: TrainingSettings, train_set: Dataset
) -> tuple[ShowAttendForConditionalGeneration, ShowAttendProcessor]:
    """The captioner to start from and its processor: new, or `init_from` with the settings' regularisers."""
    fields = {name: value for name in OF_EVERY_MODEL if (value := getattr(settings, name)) is not None}
    if settings.init_from is not None:
        model, processor = load_captioner(settings.init_from, **fields)
        model.generation_config.max_length = settings.max_length
        return model, processor
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


def check_crops(model: ShowAttendForConditionalGeneration, processor: ShowAttendProcessor) -> None:
    """Check that the encoder takes random crops of the images.

    Raises:
        ValueError: If it does not, as most vision transformers.
    """
    side = processor.image_processor(Image.new("RGB", (9, 9)), return_tensors="pt")["pixel_values"].shape[-1] - 1
    try:
        model.encoder.grid_shape(side, side)
    except ValueError as error:
        raise ValueError(
            f"`min_crop` must be 1 with this encoder, which does not take images of {side}x{side} pixels."
        ) from error


def load_for_average(
    folder: str, model: ShowAttendForConditionalGeneration, processor: ShowAttendProcessor
) -> ShowAttendForConditionalGeneration:
    """Load the captioner whose weights are averaged with those of `model`.

    Raises:
        ValueError: If it has other sizes or another vocabulary.
    """
    other, other_processor = load_captioner(folder)
    if not same_kind(model, processor, other, other_processor):
        raise ValueError(f"`average_with` {folder} has other sizes or another vocabulary than `init_from`.")
    other.generation_config = model.generation_config  # of the average as well
    return other.to(model.device)  # type: ignore[arg-type]


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
