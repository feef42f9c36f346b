"""Features of the frozen encoder, computed once and kept on disk.

The encoder's frozen part gives the same features for an image in every epoch, and costs far more than the decoder, so
they are cached: one row per image in a float16 file, about 200 KB for 49x2048. The folder's name is a digest of the
frozen weights and the preprocessing, and a row's key is a digest of the image's bytes, so that no stale features are
ever used.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, Image
from filelock import FileLock
from tqdm.auto import tqdm

from modeling_showattend import ShowAttendImageProcessor
from modeling_showattend.image_processing_showattend import load_image
from modeling_showattend.modeling_showattend import ShowAttendEncoder
from showattend.folders import write_file

from .images import digest_of, image_bytes

FLIPPED = "-flipped"
# Fields of a backbone's config that state where it comes from, not what it computes.
NO_FEATURES = {"_name_or_path", "architectures", "dtype", "transformers_version"}


def image_digests(images: Dataset) -> list[str]:
    """A digest of each image's bytes, in the order of the dataset's `image` column."""
    return [
        digest_of(image_bytes(source))
        for source in images.select_columns("image").cast_column("image", Image(decode=False))["image"]
    ]


class FeatureCache:
    """Rows of [`ShowAttendEncoder.frozen_features`] by image.

    Args:
        cache_dir: The folder that holds the caches of all encoders.
        encoder: On the device that computes the features.
        dtype: The precision of the computation; bfloat16 is several times as fast on hardware that supports it.
    """

    input_name = "image_features"

    def __init__(
        self,
        cache_dir: str | Path,
        encoder: ShowAttendEncoder,
        image_processor: ShowAttendImageProcessor,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.encoder = encoder
        self.image_processor = image_processor
        self.dtype = dtype
        self.folder = Path(cache_dir) / _digest(encoder, image_processor, dtype)
        self.rows: dict[str, int] = {}
        self.shape: tuple[int, ...] | None = None  # of a row, once built

    def build(self, images: Dataset, flipped: bool = False, batch_size: int = 32) -> list[str]:
        """Compute the missing rows, divided among all processes; an interrupted build resumes.

        Args:
            images: A dataset with an `image` column.
            flipped: Compute the features of the mirrored images as well.

        Returns:
            Each image's key for [`get`], in the dataset's order.

        Raises:
            OSError: If the disk has no room for the features or the folder cannot be written.
        """
        state = PartialState()
        digests = image_digests(images)
        wanted = {digest: (number, False) for number, digest in enumerate(digests)}
        if flipped:
            wanted |= {digest + FLIPPED: (number, True) for number, digest in enumerate(digests)}

        shape = self._row_shape()
        if state.is_main_process:
            self._make_room(list(wanted), shape)
        state.wait_for_everyone()
        self.rows = json.loads((self.folder / "rows.json").read_text())
        size = (len(self.rows), *shape)
        features = np.memmap(self.folder / "features.float16", np.float16, "r+", shape=size)
        done = np.memmap(self.folder / "done.uint8", np.uint8, "r+", shape=len(self.rows))
        missing = [key for key in wanted if not done[self.rows[key]]]
        mine = missing[state.process_index :: state.num_processes]

        progress = tqdm(
            total=len(mine), desc="features", unit="image", disable=not state.is_local_main_process or not mine
        )
        device = next(self.encoder.parameters()).device
        for start in range(0, len(mine), batch_size):
            keys = mine[start : start + batch_size]
            batch = [load_image(images[wanted[key][0]]["image"]) for key in keys]
            pixel_values = self.image_processor(batch, return_tensors="pt")["pixel_values"].to(device)
            mirrored = torch.tensor([wanted[key][1] for key in keys], device=device)
            pixel_values = torch.where(mirrored[:, None, None, None], pixel_values.flip(-1), pixel_values)
            with torch.inference_mode(), torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
                values = self.encoder.frozen_features(pixel_values)
            rows = [self.rows[key] for key in keys]
            features[rows] = values.half().cpu().numpy()
            features.flush()  # mark rows as done only once they are on disk
            done[rows] = 1
            progress.update(len(keys))
        done.flush()
        progress.close()
        state.wait_for_everyone()
        self.shape = shape
        return digests

    def get(self, keys: Sequence[str]) -> torch.Tensor:
        """The rows of images by digest ([`FLIPPED`] appended: mirrored): float16 (images, ...)."""
        if self.shape is None:
            raise ValueError("The features have not been built: call build first.")
        path, size = self.folder / "features.float16", math.prod(self.shape)
        # Whole rows are read at once: page faults of a memory map would fetch them from the disk bit by bit.
        rows = [np.fromfile(path, np.float16, size, offset=2 * size * self.rows[key]) for key in keys]
        return torch.from_numpy(np.stack(rows).reshape(-1, *self.shape))

    def _row_shape(self) -> tuple[int, ...]:
        blank = np.zeros((224, 224, 3), np.uint8)
        pixel_values = self.image_processor(blank, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            features = self.encoder.frozen_features(pixel_values.to(next(self.encoder.parameters()).device))
        return tuple(features.shape[1:])

    def _make_room(self, keys: list[str], shape: tuple[int, ...]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "lock").touch()
        except OSError as error:
            raise OSError(
                f"The features' folder {self.folder} cannot be written ({error.strerror}): choose another `cache_dir`."
            ) from error
        with FileLock(self.folder / "lock"):
            index = self.folder / "rows.json"
            rows = json.loads(index.read_text()) if index.exists() else {}
            new = [key for key in keys if key not in rows]
            row_bytes = 2 * math.prod(shape)
            free = shutil.disk_usage(self.folder).free
            if len(new) * row_bytes > free:
                raise OSError(
                    f"The features of {len(new)} images need {len(new) * row_bytes / 1e9:.1f} GB in {self.folder}, "
                    f"where {free / 1e9:.1f} GB are free: make room or choose another `cache_dir`."
                )
            rows |= {key: len(rows) + number for number, key in enumerate(new)}
            for name, size in (("features.float16", len(rows) * row_bytes), ("done.uint8", len(rows))):
                with (self.folder / name).open("ab") as file:
                    if file.tell() < size:  # allocate now: writing to a memory map on a full disk kills the process
                        os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else (
                            file.truncate(size)
                        )
            write_file(index, json.dumps(rows))


def _digest(encoder: ShowAttendEncoder, image_processor: ShowAttendImageProcessor, dtype: torch.dtype) -> str:
    """A digest of what features depend on besides the image: frozen layers, weights, preprocessing, precision."""
    digest = hashlib.blake2b(digest_size=16)
    settings = {key: value for key, value in image_processor.to_dict().items() if key != "auto_map"}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(str(encoder.frozen).encode())  # strides are not in the state dict
    backbone: Any = encoder.config.backbone_config
    if backbone is not None:
        known = {key: value for key, value in backbone.to_dict().items() if key not in NO_FEATURES}
        digest.update(json.dumps(known, sort_keys=True, default=str).encode())
    if dtype != torch.float32:
        digest.update(str(dtype).encode())
    for name, tensor in encoder.frozen.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
