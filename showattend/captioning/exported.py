"""Captions images with ONNX Runtime and a captioner that `showattend export-onnx` wrote; torch is not needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from showattend.export.onnx_captioner import SETTINGS_FILE, Floats, OnnxCaptioner, preprocess, read_image

from .stream import Caption

FASTEST_FIRST = ("int8", "float32", "float16")  # on a CPU


def is_exported(folder: str | Path) -> bool:
    """Whether a folder holds an exported captioner."""
    return (Path(folder) / SETTINGS_FILE).is_file()


class ExportedCaptioner:
    """A [`Captioner`] of an exported folder; arguments and errors are those of [`load`] and [`OnnxCaptioner.search`].

    Args:
        precision: float32, float16 or int8; by default the fastest of those in the folder.
    """

    def __init__(
        self,
        folder: str | Path,
        precision: str | None = None,
        prefix: str | None = None,
        threads: int | None = None,
        **search: Any,
    ) -> None:
        precisions = FASTEST_FIRST if precision is None else (precision,)
        for candidate in precisions:
            try:
                self.captioner = OnnxCaptioner.from_pretrained(folder, candidate, threads)
                break
            except ValueError:  # the folder lacks this precision
                if candidate == precisions[-1]:
                    raise
        token_ids = _token_ids(prefix, self.captioner.settings) if prefix else []
        self.search = self.captioner.search(prefix=token_ids, **search)

    def read(self, source: Any) -> Floats:
        """`pixel_values` (3, height, width)."""
        return preprocess(read_image(source), self.captioner.settings["preprocessing"])

    def caption(self, images: Sequence[Floats]) -> list[list[Caption]]:
        try:
            found = self.captioner.generate(np.stack(images), self.search)
        except Exception as error:  # ONNX Runtime's own exceptions have no other base
            if "alloc" in str(error):
                raise MemoryError(f"{len(images)} images together do not fit into memory.") from error
            raise
        return [[Caption(caption.text, caption.score) for caption in captions] for captions in found]


def _token_ids(text: str, settings: dict[str, Any]) -> list[int]:
    """The tokens of a text, as the captioner's processor splits it."""
    if "normalizer" not in settings:
        raise ValueError("`prefix` needs settings that the export does not have: export the captioner again.")
    vocabulary = {token: token_id for token_id, token in enumerate(settings["vocabulary"])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=settings["unk_token"]))
    tokenizer.normalizer = BertNormalizer(**settings["normalizer"])
    tokenizer.pre_tokenizer = BertPreTokenizer()
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids
    if tokenizer.token_to_id(settings["unk_token"]) in token_ids:
        raise ValueError(f"`prefix` {text!r} holds a word that the captioner's vocabulary does not know.")
    return token_ids
