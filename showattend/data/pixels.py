"""Decodes images when a batch needs them, for datasets whose features do not fit on the disk."""

from collections.abc import Sequence

import torch
from datasets import Dataset

from modeling_showattend import ShowAttendImageProcessor
from modeling_showattend.image_processing_showattend import load_image

from .features import FLIPPED


class PixelLoader:
    """Replaces a [`FeatureCache`]; the encoder then runs in every step."""

    input_name = "pixel_values"

    def __init__(self, image_processor: ShowAttendImageProcessor) -> None:
        self.image_processor = image_processor
        self.datasets: list[Dataset] = []

    def build(self, images: Dataset, flipped: bool = False) -> list[str]:
        """Each image's key for [`get`], in the order of the dataset's `image` column; nothing is read yet."""
        self.datasets.append(images.select_columns("image"))
        return [f"{len(self.datasets) - 1}/{row}" for row in range(len(images))]

    def get(self, keys: Sequence[str]) -> torch.Tensor:
        """The images by key (mirrored where [`FLIPPED`] is appended), (images, 3, height, width)."""
        places = [map(int, key.removesuffix(FLIPPED).split("/")) for key in keys]
        images = [load_image(self.datasets[dataset][row]["image"]) for dataset, row in places]
        pixel_values = self.image_processor(images, return_tensors="pt")["pixel_values"]
        mirrored = torch.tensor([key.endswith(FLIPPED) for key in keys])
        return torch.where(mirrored[:, None, None, None], pixel_values.flip(-1), pixel_values)
