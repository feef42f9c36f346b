"""The processor: turns images and texts into the inputs of `forward` and `generate`."""

import re
from collections.abc import Sequence
from typing import Any, TypedDict

from transformers import BaseImageProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin, TensorType
from transformers.processing_utils import ProcessingKwargs

IGNORED = -100  # the label that the loss ignores
DEFAULTS: dict[str, dict[str, Any]] = {"text_kwargs": {"padding": True, "max_length": 30}}


class ShowAttendTextKwargs(TypedDict, total=False):
    padding: bool | str
    max_length: int
    return_tensors: str | TensorType | None


class ShowAttendProcessorKwargs(ProcessingKwargs, total=False):
    text_kwargs: ShowAttendTextKwargs  # type: ignore[misc]
    _defaults = DEFAULTS  # type: ignore[misc]


class ShowAttendProcessor(ProcessorMixin):
    """An image processor and a BERT tokenizer in one.

    ```python
    processor(images, return_tensors="pt")                         # pixel_values
    processor(images, text="a photo of", return_tensors="pt")      # + decoder_input_ids: [CLS] a photo of
    processor(images, text_target=captions, return_tensors="pt")   # + labels: a dog runs [SEP]
    ```

    Args:
        image_processor: A [`ShowAttendImageProcessor`].
        tokenizer: A `BertTokenizer`; captions start with its `[CLS]` and end with its `[SEP]`.
    """

    valid_processor_kwargs = ShowAttendProcessorKwargs  # type: ignore[assignment]

    def __init__(self, image_processor: BaseImageProcessor, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(image_processor, tokenizer)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        text_target: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares a batch; the first dimension of every output is the batch, even for a single image.

        Args:
            images: An image or a batch of images, of any kind that [`ShowAttendImageProcessor`] reads.
            text: What generated captions begin with: one prefix for all images or one per image. An empty prefix
                gives `[CLS]` alone.
            text_target: The captions to train on, one per image.
            kwargs: Directly or in `images_kwargs`, `text_kwargs` and `common_kwargs`, as in transformers' processors:
                - max_length (30): Target captions are cut to this many tokens, including `[CLS]` and `[SEP]`.
                - padding (True): Pad target captions to the longest, or to `"max_length"`.
                - return_tensors: `"pt"`, `"np"`, or None for lists.
                - Options of the image processor.

        Returns:
            BatchFeature with those of the following that were requested:
            - pixel_values: float32 (batch, 3, height, width).
            - decoder_input_ids: int64 (batch, prefix length), `[CLS]` and the prefix without `[SEP]`.
            - labels: int64 (batch, caption length), the caption and `[SEP]`, without `[CLS]`, from which the decoder
              starts; -100 where padded.

        Raises:
            ValueError: Nothing was given, the numbers of images and texts differ, or the prefixes of a batch differ in
                length: an LSTM cannot skip padding.
            TypeError: An argument is unknown.
            OSError: An image cannot be read.
        """
        if images is None and text is None and text_target is None:
            raise ValueError("give the processor at least one of images, text and text_target")
        images_kwargs, text_kwargs = self._grouped(**kwargs)
        tensor_types = [group.pop("return_tensors", None) for group in (images_kwargs, text_kwargs)]
        data: dict[str, Any] = {}
        num_images = None
        if images is not None:
            data.update(self.image_processor(images, **images_kwargs))
            num_images = len(data["pixel_values"])
        if text is not None:
            if isinstance(text, str):
                text = [text] * (num_images or 1)
            data["decoder_input_ids"] = self._prefix_ids(_checked(text, "text", num_images))
        if text_target is not None:
            data["labels"] = self._labels(_checked(text_target, "text_target", num_images), **text_kwargs)
        return BatchFeature(data, tensor_type=next(filter(None, tensor_types), None))

    def _grouped(
        self,
        images_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        common_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split the arguments between images and text; transformers' own function ignores unknown ones."""
        given = {"images_kwargs": images_kwargs or {}, "text_kwargs": text_kwargs or {}}
        known = {
            "images_kwargs": set(self.image_processor.valid_kwargs.__annotations__),
            "text_kwargs": set(ShowAttendTextKwargs.__annotations__),
        }
        shared = (common_kwargs or {}) | kwargs
        unknown = [name for name in shared if not any(name in names for names in known.values())]
        unknown += [name for group, names in known.items() for name in given[group] if name not in names]
        if unknown:
            raise TypeError(f"{type(self).__name__} got an unexpected argument {unknown[0]!r}.")
        merged = []
        for group, names in known.items():
            if twice := sorted(set(given[group]) & set(kwargs)):
                raise ValueError(f"{twice[0]} was given by itself and in {group}: give it once.")
            merged.append(
                DEFAULTS.get(group, {}) | {name: shared[name] for name in shared if name in names} | given[group]
            )
        return merged[0], merged[1]

    def _prefix_ids(self, prefixes: list[str]) -> list[list[int]]:
        # split_special_tokens: a literal "[SEP]" in the text is ordinary text.
        encoded = self.tokenizer(prefixes, add_special_tokens=False, split_special_tokens=True)
        lengths = sorted({len(ids) for ids in encoded["input_ids"]})
        if len(lengths) > 1:
            raise ValueError(
                "the prefixes of one batch must have the same number of tokens, because an LSTM cannot skip "
                f"padding, but they have {', '.join(map(str, lengths))}: caption them in separate batches"
            )
        return [[self.tokenizer.cls_token_id, *ids] for ids in encoded["input_ids"]]

    def _labels(self, captions: list[str], max_length: int, padding: bool | str) -> list[list[int]]:
        encoded = self.tokenizer(
            captions,
            padding=padding,
            padding_side="right",
            truncation=True,
            max_length=max_length,
            return_attention_mask=True,
            split_special_tokens=True,
        )
        return [
            [token if kept else IGNORED for token, kept in zip(ids[1:], mask[1:], strict=True)]
            for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
        ]

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """The tokenizer's `decode`, with split words joined: a man's t-shirt, not a man ' s t - shirt."""
        decoded = super().decode(*args, **kwargs)
        return _joined(decoded) if isinstance(decoded, str) else [_joined(text) for text in decoded]

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """As [`decode`], for a batch."""
        return [_joined(text) for text in super().batch_decode(*args, **kwargs)]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """What transformers' image-text-to-text pipeline calls to decode."""
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "decoder_input_ids"]


def _joined(text: str) -> str:
    return re.sub(r"(?<=\w) (['/-]) (?=\w)", r"\1", text)


def _checked(texts: str | Sequence[str], argument: str, num_images: int | None) -> list[str]:
    texts = list(texts) if isinstance(texts, Sequence) and not isinstance(texts, str) else [texts]
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise ValueError(f"{argument} must hold strings, but number {number} is of type {type(text).__name__}")
    if not texts or num_images not in (None, len(texts)):
        images = "each image" if num_images is None else f"each of {num_images} images"
        raise ValueError(f"{argument} must hold one string for {images}, but holds {len(texts)}")
    return texts


ShowAttendProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["ShowAttendProcessor"]
