"""Captions photos with ONNX Runtime: needs onnxruntime, numpy and Pillow, but neither torch nor transformers.

The export copies this file into the folder that it writes, so that the folder runs by itself:

    pip install onnxruntime pillow
    python FOLDER/onnx_captioner.py PHOTO [PHOTO ...]
"""

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

SETTINGS_FILE = "captioner.json"
Floats: TypeAlias = NDArray[np.float32]


class Caption(NamedTuple):
    """A caption, and where the network looked before each of its word pieces.

    `token_ids` and `pieces` are what was generated after `[CLS]`: they end with `[SEP]`, unless the caption was cut at
    its greatest length. `attentions` is (pieces, rows, columns), the weights of the grid that lies over the upright
    photo; those of a piece sum to one.
    """

    text: str
    token_ids: list[int]
    pieces: list[str]
    attentions: Floats


class _Hypothesis(NamedTuple):
    """A caption in the making."""

    score: np.float32
    token_ids: tuple[int, ...]
    attentions: tuple[Floats, ...]  # (positions,) each


# The search for a photo's caption asks for a decoding step with the last pieces of its captions, their h and c, and is
# sent logits, h, c and attention; of each the first dimension is the captions'.
_Search: TypeAlias = Generator[tuple[Sequence[int], Floats, Floats], list[Floats], _Hypothesis]


class OnnxCaptioner:
    """A captioner that `scripts/export_onnx.py` wrote.

    ```python
    captioner = OnnxCaptioner.from_pretrained("FOLDER", precision="int8")
    captioner("dog.jpg").text                # a dog runs through the grass
    captioner("dog.jpg", num_beams=3)
    captioner.caption_batch(["dog.jpg", "cat.jpg"])
    ```

    Args:
        settings: What `captioner.json` holds.
        encoder: The `onnxruntime.InferenceSession` from `pixel_values` to `values`, `keys`, `h` and `c`.
        decoder: The one of a decoding step.
    """

    def __init__(self, settings: dict[str, Any], encoder: Any, decoder: Any) -> None:
        self.settings = settings
        self.encoder = encoder
        self.decoder = decoder

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], precision: str = "float32") -> "OnnxCaptioner":
        """Load an exported captioner, to run on the CPU.

        Raises:
            ImportError: If onnxruntime is not installed.
            OSError: If the folder holds no captioner, or a file of it is missing or damaged.
            ValueError: If the captioner was not exported in this precision.
        """
        try:
            from onnxruntime import InferenceSession, SessionOptions
        except ImportError as error:
            raise ImportError("Captioning with ONNX needs ONNX Runtime: pip install onnxruntime") from error
        folder = Path(folder)
        try:
            settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
            files = settings["files"]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(
                f"{folder} has no {SETTINGS_FILE}, so it is no exported captioner: scripts/export_onnx.py makes one."
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OSError(f"{folder / SETTINGS_FILE} does not hold the settings of an exported captioner.") from error
        if precision not in files:
            raise ValueError(f"{folder} does not hold the precision {precision!r} but {', '.join(files)}.")
        options = SessionOptions()
        # Encoder and decoder take turns: the threads of the one would wait busily on the cores that the other needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        sessions = []
        for file in (folder / files[precision]["encoder"], folder / files[precision]["decoder"]):
            try:
                sessions.append(InferenceSession(file, options, providers=["CPUExecutionProvider"]))
            except Exception as error:  # types that ONNX Runtime does not export
                raise OSError(f"{file} is missing or damaged: export the captioner again.") from error
        return cls(settings, *sessions)

    def __call__(
        self,
        photo: Any,
        num_beams: int | None = None,
        length_penalty: float | None = None,
        max_length: int | None = None,
    ) -> Caption:
        """Caption a photo as transformers' `generate` does it; what is not given is as `captioner.json` says.

        Args:
            photo: A path, a PIL image, the bytes of an image file, or an open binary file.
            num_beams: 1 for greedy search, more for beam search.
            length_penalty: Above 0, beam search prefers longer captions.
            max_length: Word pieces at most, `[CLS]` and `[SEP]` counted.

        Raises:
            OSError: If the photo cannot be read.
            ValueError: If it is of another type, or a number is out of range.
        """
        return self.caption_batch([photo], num_beams, length_penalty, max_length)[0]

    def caption_batch(
        self,
        photos: Sequence[Any],
        num_beams: int | None = None,
        length_penalty: float | None = None,
        max_length: int | None = None,
    ) -> list[Caption]:
        """Caption photos together, which takes less time than one by one; as many as memory allows, 32 say.

        In int8 a caption may differ with the photos beside it, whose activations are rounded to the same scale.

        Args:
            photos: Each as [`__call__`] takes it. The other arguments and the errors are its as well.
        """
        if not photos:
            return []
        generation = self.settings["generation"]
        num_beams = generation["num_beams"] if num_beams is None else num_beams
        length_penalty = generation["length_penalty"] if length_penalty is None else length_penalty
        max_length = generation["max_length"] if max_length is None else max_length
        for name, number, least in (("num_beams", num_beams, 1), ("max_length", max_length, 2)):
            if not isinstance(number, int | np.integer) or number < least:
                raise ValueError(f"{name}={number!r} must be a whole number from {least}.")
        pixel_values = np.stack([preprocess(read_photo(photo), self.settings["preprocessing"]) for photo in photos])
        values, keys, *state = self.encoder.run(["values", "keys", "h", "c"], {"pixel_values": pixel_values})
        rules = _Rules(
            start=generation["decoder_start_token_id"],
            end=generation["eos_token_id"],
            max_pieces=max_length - 1,
            no_repeat_ngram_size=generation["no_repeat_ngram_size"],
        )
        searches = [
            greedy_search(rules, h, c) if num_beams == 1 else beam_search(rules, h, c, num_beams, length_penalty)
            for h, c in zip(*state, strict=True)  # (1, units) each
        ]
        return [self._caption(best) for best in self._run_together(searches, values, keys)]

    def _run_together(self, searches: list[_Search], values: Floats, keys: Floats) -> list[_Hypothesis]:
        """What the photos' searches find, each decoding step taken for all that have not ended."""
        found: dict[int, _Hypothesis] = {}
        asked = {photo: next(search) for photo, search in enumerate(searches)}
        while asked:
            # The graph takes equally many captions of each photo: what some lack is filled up.
            shape = len(asked), max(len(token_ids) for token_ids, _, _ in asked.values())
            units = next(iter(asked.values()))[1].shape[-1]
            input_ids = np.zeros(shape, np.int64)
            h, c = np.zeros((2, *shape, units), np.float32)
            for row, (token_ids, h_of_photo, c_of_photo) in enumerate(asked.values()):
                input_ids[row, : len(token_ids)] = token_ids
                h[row, : len(token_ids)], c[row, : len(token_ids)] = h_of_photo, c_of_photo
            inputs = {"input_ids": input_ids, "h": h, "c": c, "values": values, "keys": keys}
            outputs = self.decoder.run(["logits", "next_h", "next_c", "attention"], inputs)
            going_on = []
            for row, (photo, (token_ids, _, _)) in enumerate(list(asked.items())):
                try:
                    asked[photo] = searches[photo].send([output[row, : len(token_ids)] for output in outputs])
                    going_on.append(row)
                except StopIteration as end:
                    found[photo] = end.value
                    del asked[photo]
            if len(going_on) < len(values):
                values, keys = values[going_on], keys[going_on]
        return [found[photo] for photo in range(len(searches))]

    def _caption(self, best: _Hypothesis) -> Caption:
        grid = self.settings["attention_grid"]
        return Caption(
            text=self.decode(best.token_ids),
            token_ids=list(best.token_ids),
            pieces=[self.settings["vocabulary"][token_id] for token_id in best.token_ids],
            attentions=np.stack(best.attentions).reshape(-1, grid["rows"], grid["columns"]),
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Word pieces to text, special tokens left out: `man`, `'`, `s`, `surf`, `##board` to `man's surfboard`."""
        special = self.settings["special_token_ids"]
        pieces = [self.settings["vocabulary"][token_id] for token_id in token_ids if token_id not in special]
        text = "".join(
            piece.removeprefix("##") if number and piece.startswith("##") else _spaced(piece)
            for number, piece in enumerate(pieces)
        )
        return re.sub(r"(?<=\w) (['/-]) (?=\w)", r"\1", text.removeprefix(" "))


def _spaced(piece: str) -> str:
    # As tokenizers' WordPiece decoder: no space before what ends a sentence or a contraction.
    return piece if re.match(r"[.?!,]|n't|'(?:m|s|ve|re)", piece) else f" {piece}"


def read_photo(photo: Any) -> Image.Image:
    """Reads a photo as people see it: upright (EXIF), RGB, 8 bits, first frame, transparent parts on white."""
    name = photo if isinstance(photo, str | os.PathLike) else getattr(photo, "name", None) or "the photo"
    if isinstance(photo, bytes | bytearray):
        photo = io.BytesIO(photo)
    try:
        if isinstance(photo, Image.Image):
            return _upright_rgb(photo)
        if isinstance(photo, str | os.PathLike) or hasattr(photo, "read"):
            with Image.open(photo) as image:
                return _upright_rgb(image)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such image file: {name}") from error
    except UnidentifiedImageError as error:
        raise OSError(f"cannot read {name}: it is empty or in no image format that Pillow knows") from error
    except Exception as error:  # Pillow's decoders raise almost any type on a damaged file
        raise OSError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
    raise ValueError(f"a photo must be a path, a PIL image, bytes or an open file, not {type(photo).__name__}")


def _upright_rgb(image: Image.Image) -> Image.Image:
    has_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    image = ImageOps.exif_transpose(image)
    if has_16_bits:  # Pillow's own conversion would clip everything above 255
        image = Image.fromarray(np.rint(np.asarray(image).astype(np.uint16) / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} (32 bits) have no agreed range; convert them to 8 bits first")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def preprocess(image: Image.Image, settings: dict[str, Any]) -> Floats:
    """An RGB image to `pixel_values` (3, height, width), with `preprocessing` of `captioner.json`."""
    resample = Image.Resampling[settings["resample"].upper()]
    pixels = np.asarray(image.resize((settings["width"], settings["height"]), resample))  # (height, width, 3), uint8
    scaled = (pixels * settings["rescale_factor"]).astype(np.float32)
    normalised = (scaled - np.float32(settings["mean"])) / np.float32(settings["std"])
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


class _Rules(NamedTuple):
    """Which captions a search may find."""

    start: int
    end: int
    max_pieces: int
    no_repeat_ngram_size: int  # 0: captions may repeat themselves

    def repeating(self, token_ids: Sequence[int]) -> list[int]:
        """The pieces that would end a second occurrence of `no_repeat_ngram_size` pieces in a row."""
        size, pieces = self.no_repeat_ngram_size, (self.start, *token_ids)
        places = range(len(pieces) - size + 1) if size else ()
        last = pieces[len(pieces) - size + 1 :]
        return [pieces[place + size - 1] for place in places if pieces[place : place + size - 1] == last]


def greedy_search(rules: _Rules, h: Floats, c: Floats) -> _Search:
    """The likeliest piece, one after the other."""
    token_ids: list[int] = []
    attentions: list[Floats] = []
    while len(token_ids) < rules.max_pieces and rules.end not in token_ids[-1:]:
        logits, h, c, attention = yield token_ids[-1:] or [rules.start], h, c
        logits[0, rules.repeating(token_ids)] = -np.inf
        token_ids.append(int(logits[0].argmax()))
        attentions.append(attention[0])
    return _Hypothesis(np.float32(0), tuple(token_ids), tuple(attentions))


def beam_search(rules: _Rules, h: Floats, c: Floats, num_beams: int, length_penalty: float) -> _Search:
    """The best of the captions that transformers' beam search finds, with its default `early_stopping=False`."""
    running = [_Hypothesis(np.float32(0), (), ())]  # best first; the score is the log probability
    ended: list[_Hypothesis] = []  # best first; the score is divided by length ** length_penalty
    for length in range(1, rules.max_pieces + 1):
        last = [beam.token_ids[-1] if length > 1 else rules.start for beam in running]
        logits, h, c, attention = yield last, h, c
        log_probs = _log_softmax(logits)
        for row, beam in zip(log_probs, running, strict=True):
            row[rules.repeating(beam.token_ids)] = -np.inf
        scores = log_probs + np.stack([beam.score for beam in running])[:, None]  # (beams, vocab_size)
        # Twice as many as there are beams, so that enough go on where some of them end.
        best = _largest(scores.ravel(), 2 * num_beams)
        parents, tokens = np.divmod(best, scores.shape[1])
        candidates = [
            _Hypothesis(
                scores[parent, token],
                (*running[parent].token_ids, int(token)),
                (*running[parent].attentions, attention[parent]),
            )
            for parent, token in zip(parents, tokens, strict=True)
        ]
        at_end = (tokens == rules.end) | (length == rules.max_pieces)
        for candidate, has_ended in zip(candidates[:num_beams], at_end, strict=False):
            if has_ended:
                ended.append(candidate._replace(score=candidate.score / length**length_penalty))
        ended = sorted(ended, key=lambda caption: -caption.score)[:num_beams]
        going_on = np.flatnonzero(~at_end)[:num_beams]
        if not len(going_on):
            break
        running = [candidates[number] for number in going_on]
        h, c = h[parents[going_on]], c[parents[going_on]]
        # A guess at what a running caption can still reach: longer, it could have a better score than now.
        if len(ended) == num_beams and running[0].score / length**length_penalty <= ended[-1].score:
            break
    return ended[0]


def _largest(values: Floats, number: int) -> NDArray[np.intp]:
    """Where the largest values are, in descending order; sorting a whole vocabulary would take longer."""
    # As many stretches as are wanted reach this bound with their maxima, so that all the largest values do.
    maxima = np.maximum.reduceat(values, np.arange(0, len(values), 64))
    bound = np.partition(maxima, -number)[-number] if number <= len(maxima) else -np.inf
    places = np.flatnonzero(values >= bound)
    return places[np.argsort(-values[places])[:number]]


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="Caption photos with ONNX Runtime.")
    parser.add_argument("photos", nargs="+", metavar="PHOTO")
    parser.add_argument("--folder", default=Path(__file__).parent, help="of the exported captioner (default: this one)")
    parser.add_argument("--precision", default="float32", help="float32 (default), float16 or int8")
    parser.add_argument("--num-beams", "--num_beams", type=int, help="1: greedy search")
    options = parser.parse_args()
    if options.num_beams is not None and options.num_beams < 1:
        parser.error(f"--num-beams must be at least 1, not {options.num_beams}")
    try:
        captioner = OnnxCaptioner.from_pretrained(options.folder, options.precision)
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    failed = False
    for photo in options.photos:
        try:
            caption = captioner(photo, num_beams=options.num_beams).text
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
        else:
            print(caption if len(options.photos) == 1 else f"{photo}\t{caption}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
