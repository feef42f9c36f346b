"""`pipeline("image-to-text", model=FOLDER_OR_ID, trust_remote_code=True)`: images in, captions out."""

import os
from typing import Any

from transformers import BatchFeature, Pipeline


class ImageCaptioningPipeline(Pipeline):
    """Captions images; no text is needed.

    ```python
    captioner = pipeline("image-to-text", model="FOLDER_OR_ID", trust_remote_code=True)
    captioner("dog.jpg")                                # [{"generated_text": "a dog runs through the grass"}]
    captioner(["dog.jpg", "cat.png"], batch_size=2)     # a list of such lists
    captioner("dog.jpg", prefix="a photo of", num_beams=5, num_return_sequences=3)
    ```

    An image is anything that the image processor reads: a path, an http(s) URL, a PIL image, an array, bytes, an open
    file. The caption begins with `prefix`. All other arguments go to `generate`.
    """

    _load_processor: Any = True  # it holds the image processor and the tokenizer
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False
    model: Any
    processor: Any

    def _sanitize_parameters(
        self, prefix: str | None = None, generate_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = {} if prefix is None else {"prefix": prefix}
        return preprocess, {**(generate_kwargs or {}), **kwargs}, {}

    def preprocess(self, image: Any, prefix: str | None = None) -> BatchFeature:  # type: ignore[override]
        return self.processor(images=image, text=prefix, return_tensors="pt").to(self.dtype)

    def _forward(self, model_inputs: BatchFeature, **generate_kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        sequences = self.model.generate(**model_inputs, **generate_kwargs)
        images = len(model_inputs["pixel_values"])
        return {"sequences": sequences.view(images, -1, sequences.shape[-1])}  # (images, captions per image, tokens)

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, str]]:  # type: ignore[override]
        captions = self.processor.batch_decode(model_outputs["sequences"].flatten(0, 1), skip_special_tokens=True)
        return [{"generated_text": caption} for caption in captions]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the model and the processor to a folder from which the pipeline can be loaded."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
