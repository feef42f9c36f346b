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
import string
import sys
from collections.abc import Generator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

SETTINGS_FILE = "captioner.json"
Floats: TypeAlias = NDArray[np.float32]
_T = TypeVar("_T")


class Caption(NamedTuple):
    """A caption, and where the network looked before each of its tokens.

    `token_ids` and `tokens` are what follows `[CLS]`: a prefix, if one was given, and what was generated, which ends
    with `[SEP]` unless the caption was cut at its maximum length. `attentions` is (tokens, rows, columns), the weights
    of the grid that lies over the upright image; those of a token sum to one. `score` is the mean log probability of
    the generated tokens.
    """

    text: str
    token_ids: list[int]
    tokens: list[str]
    attentions: Floats
    score: float


class Search(NamedTuple):
    """Settings of the search."""

    start: int
    end: int
    no_repeat_ngram_size: int  # 0: captions may repeat themselves
    num_beams: int
    num_captions: int
    length_penalty: float
    max_length: int
    prefix: tuple[int, ...]

    def repeating(self, token_ids: Sequence[int]) -> list[int]:
        """The tokens that would complete a second occurrence of `no_repeat_ngram_size` tokens in a row."""
        size, tokens = self.no_repeat_ngram_size, (self.start, *token_ids)
        places = range(len(tokens) - size + 1) if size else ()
        last = tokens[len(tokens) - size + 1 :]
        return [tokens[place + size - 1] for place in places if tokens[place : place + size - 1] == last]


class _Hypothesis(NamedTuple):
    """An unfinished caption."""

    prefix_length: int
    log_prob: np.float32 = np.float32(0)  # of the generated tokens
    token_ids: tuple[int, ...] = ()
    attentions: tuple[Floats, ...] = ()  # (positions,) each

    def extended(self, token_id: int, log_prob: np.float32, attention: Floats) -> "_Hypothesis":
        tokens, attentions = (*self.token_ids, token_id), (*self.attentions, attention)
        return _Hypothesis(self.prefix_length, self.log_prob + log_prob, tokens, attentions)


# The search for an image's captions yields their last tokens, h and c to request a decoding step, and is sent logits,
# h, c and attention. The first dimension of each is the captions'.
_Steps: TypeAlias = Generator[tuple[Sequence[int], Floats, Floats], list[Floats], _T]


class OnnxCaptioner:
    """A captioner that `showattend export-onnx` wrote.

    ```python
    captioner = OnnxCaptioner.from_pretrained("FOLDER", precision="int8")
    captioner("dog.jpg").text                # a dog runs through the grass
    captioner("dog.jpg", num_beams=3)
    captioner.caption_batch(["dog.jpg", "cat.jpg"])
    ```

    Args:
        settings: The contents of `captioner.json`.
        encoder: The `onnxruntime.InferenceSession` from `pixel_values` to `values`, `keys`, `h` and `c`.
        decoder: The `InferenceSession` of a decoding step.
    """

    def __init__(self, settings: dict[str, Any], encoder: Any, decoder: Any) -> None:
        self.settings = settings
        self.encoder = encoder
        self.decoder = decoder

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], precision: str | None = None, threads: int | None = None
    ) -> "OnnxCaptioner":
        """Load an exported captioner, to run on the CPU.

        Args:
            precision: float32, float16 or int8; by default the first of these that the folder holds.
            threads: The number of threads; by default one per core.

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
                f"{folder} has no {SETTINGS_FILE}, so it is not an exported captioner: run `showattend export-onnx`."
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OSError(f"{folder / SETTINGS_FILE} does not hold the settings of an exported captioner.") from error
        precision = next(iter(files), None) if precision is None else precision
        if precision not in files:
            raise ValueError(f"{folder} holds {', '.join(files)}, not the precision {precision!r}.")
        options = SessionOptions()
        options.intra_op_num_threads = threads or 0
        # Encoder and decoder take turns: idle threads of one would spin on the cores that the other needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        sessions = []
        for file in (folder / files[precision]["encoder"], folder / files[precision]["decoder"]):
            try:
                sessions.append(InferenceSession(file, options, providers=["CPUExecutionProvider"]))
            except Exception as error:  # types that ONNX Runtime does not export
                raise OSError(f"{file} is missing or damaged: export the captioner again.") from error
        return cls(settings, *sessions)

    def __call__(self, image: Any, **search: Any) -> Caption:
        """Caption an image as transformers' `generate` does; `search` takes the arguments of [`search`].

        Args:
            image: A path, an http(s) URL, a PIL image, the bytes of an image file, or an open binary file.

        Raises:
            OSError: If the image cannot be read.
        """
        return self.caption_batch([image], **search)[0]

    def caption_batch(self, images: Sequence[Any], **search: Any) -> list[Caption]:
        """As [`__call__`], for as many images as fit into memory, for example 32, which is faster than one by one.

        In int8 a caption may depend on the images beside it, whose activations are rounded to the same scale.
        """
        settled = self.search(**search)
        if not images:
            return []
        pixel_values = np.stack([preprocess(read_image(image), self.settings["preprocessing"]) for image in images])
        return [captions[0] for captions in self.generate(pixel_values, settled)]

    def search(
        self,
        num_beams: int | None = None,
        length_penalty: float | None = None,
        max_length: int | None = None,
        num_captions: int = 1,
        prefix: Sequence[int] = (),
    ) -> Search:
        """Settings of a search; the defaults are those of `captioner.json`.

        Args:
            num_beams: 1 for greedy search, more for beam search. By default there are at least `num_captions`.
            length_penalty: Above 0, beam search prefers longer captions.
            max_length: The largest number of tokens, including `[CLS]` and `[SEP]`.
            num_captions: How many of the beams to return for each image.
            prefix: The tokens that every caption begins with.

        Raises:
            ValueError: If a number is out of range, or two contradict each other.
        """
        generation = self.settings["generation"]
        beams = max(num_captions, generation["num_beams"]) if num_beams is None else num_beams
        longest = generation["max_length"] if max_length is None else max_length
        numbers = (("num_captions", num_captions, 1), ("num_beams", beams, 1), ("max_length", longest, 2))
        for name, number, least in numbers:
            if not isinstance(number, int | np.integer) or number < least:
                raise ValueError(f"`{name}` must be a whole number from {least}, not {number!r}.")
        if beams < num_captions:
            raise ValueError(f"`num_captions` {num_captions} needs {num_captions} or more `num_beams`, not {beams}.")
        if length_penalty is not None and beams == 1:
            raise ValueError("`length_penalty` chooses among beams: it needs `num_beams` of 2 or more.")
        if len(prefix) + 1 >= longest:
            raise ValueError(
                f"`prefix` has {len(prefix) + 1} tokens with [CLS], which leaves none for a caption of {longest}."
            )
        return Search(
            start=generation["decoder_start_token_id"],
            end=generation["eos_token_id"],
            no_repeat_ngram_size=generation["no_repeat_ngram_size"],
            num_beams=beams,
            num_captions=num_captions,
            length_penalty=generation["length_penalty"] if length_penalty is None else length_penalty,
            max_length=longest,
            prefix=tuple(prefix),
        )

    def generate(self, pixel_values: Floats, search: Search) -> list[list[Caption]]:
        """Caption images (images, 3, height, width) from [`preprocess`]; each image's captions, the best first."""
        values, keys, *state = self.encoder.run(["values", "keys", "h", "c"], {"pixel_values": pixel_values})
        search_one = greedy_search if search.num_beams == 1 else beam_search
        searches = [search_one(search, h, c) for h, c in zip(*state, strict=True)]  # h, c: (1, units)
        return [list(map(self._caption, found)) for found in self._run_together(searches, values, keys)]

    def _run_together(
        self, searches: list[_Steps[list[_Hypothesis]]], values: Floats, keys: Floats
    ) -> list[list[_Hypothesis]]:
        """Run the images' searches; each decoding step is shared by all that have not ended."""
        found: dict[int, list[_Hypothesis]] = {}
        asked = {image: next(search) for image, search in enumerate(searches)}
        while asked:
            # The graph takes the same number of captions per image: pad the missing ones.
            shape = len(asked), max(len(token_ids) for token_ids, _, _ in asked.values())
            units = next(iter(asked.values()))[1].shape[-1]
            input_ids = np.zeros(shape, np.int64)
            h, c = np.zeros((2, *shape, units), np.float32)
            for row, (token_ids, h_of_image, c_of_image) in enumerate(asked.values()):
                input_ids[row, : len(token_ids)] = token_ids
                h[row, : len(token_ids)], c[row, : len(token_ids)] = h_of_image, c_of_image
            inputs = {"input_ids": input_ids, "h": h, "c": c, "values": values, "keys": keys}
            outputs = self.decoder.run(["logits", "next_h", "next_c", "attention"], inputs)
            continuing = []
            for row, (image, (token_ids, _, _)) in enumerate(list(asked.items())):
                try:
                    asked[image] = searches[image].send([output[row, : len(token_ids)] for output in outputs])
                    continuing.append(row)
                except StopIteration as end:
                    found[image] = end.value
                    del asked[image]
            if len(continuing) < len(values):
                values, keys = values[continuing], keys[continuing]
        return [found[image] for image in range(len(searches))]

    def _caption(self, hypothesis: _Hypothesis) -> Caption:
        grid = self.settings["attention_grid"]
        generated = len(hypothesis.token_ids) - hypothesis.prefix_length
        return Caption(
            text=self.decode(hypothesis.token_ids),
            token_ids=list(hypothesis.token_ids),
            tokens=[self.settings["vocabulary"][token_id] for token_id in hypothesis.token_ids],
            attentions=np.stack(hypothesis.attentions).reshape(-1, grid["rows"], grid["columns"]),
            score=float(hypothesis.log_prob) / generated,
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Tokens to text, special ones left out: `man`, `'`, `s`, `surf`, `##board` to `man's surfboard`."""
        special = self.settings["special_token_ids"]
        tokens = [self.settings["vocabulary"][token_id] for token_id in token_ids if token_id not in special]
        text = "".join(
            token.removeprefix("##") if number and token.startswith("##") else _spaced(token)
            for number, token in enumerate(tokens)
        )
        return re.sub(r"(?<=\w) (['/-]) (?=\w)", r"\1", text.removeprefix(" "))


def _spaced(token: str) -> str:
    # As tokenizers' WordPiece decoder: no space before what ends a sentence or a contraction.
    return token if re.match(r"[.?!,]|n't|'(?:m|s|ve|re)", token) else f" {token}"


def read_image(source: Any) -> Image.Image:
    """Reads an image as people see it: upright (EXIF), RGB, 8 bits, first frame, transparent parts on white."""
    name = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None) or "the image"
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        source = _download(source)
    elif isinstance(source, bytes | bytearray):
        source = io.BytesIO(source)
    try:
        if isinstance(source, Image.Image):
            return _upright_rgb(source)
        if isinstance(source, str | os.PathLike) or hasattr(source, "read"):
            with Image.open(source) as image:
                return _upright_rgb(image)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such image file: {name}") from error
    except UnidentifiedImageError as error:
        raise OSError(f"cannot read {name}: it is empty or in no image format that Pillow knows") from error
    except Exception as error:  # Pillow's decoders raise almost any type on a damaged file
        raise OSError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
    raise ValueError(f"an image must be a path, a URL, a PIL image, bytes or an open file, not {type(source).__name__}")


def _download(url: str) -> io.BytesIO:
    # Some servers refuse Python's own User-Agent; spaces and letters beyond ASCII must be escaped in a request.
    request = Request(quote(url, safe=string.punctuation), headers={"User-Agent": "Mozilla/5.0 (showattend)"})
    try:
        with urlopen(request, timeout=10) as response:
            return io.BytesIO(response.read())
    except (OSError, HTTPException, ValueError) as error:
        raise OSError(f"cannot download {url}: {error}") from error


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


def _read_prefix(search: Search, h: Floats, c: Floats) -> _Steps[tuple[_Hypothesis, Floats, Floats]]:
    """Have the decoder read the prefix: all but its last token, which the search begins with."""
    caption = _Hypothesis(prefix_length=len(search.prefix))
    for token_id in search.prefix:
        _, h, c, attention = yield caption.token_ids[-1:] or (search.start,), h, c
        caption = caption.extended(token_id, np.float32(0), attention[0])
    return caption, h, c


def greedy_search(search: Search, h: Floats, c: Floats) -> _Steps[list[_Hypothesis]]:
    """The likeliest token, one after the other."""
    caption, h, c = yield from _read_prefix(search, h, c)
    for _ in range(search.max_length - 1 - len(search.prefix)):
        logits, h, c, attention = yield caption.token_ids[-1:] or (search.start,), h, c
        log_probs = _log_softmax(logits)[0]
        log_probs[search.repeating(caption.token_ids)] = -np.inf
        token_id = int(log_probs.argmax())
        caption = caption.extended(token_id, log_probs[token_id], attention[0])
        if token_id == search.end:
            break
    return [caption]


def beam_search(search: Search, h: Floats, c: Floats) -> _Steps[list[_Hypothesis]]:
    """The captions that transformers' beam search finds, the best first, with its default `early_stopping=False`."""
    num_beams, penalty = search.num_beams, search.length_penalty
    first, h, c = yield from _read_prefix(search, h, c)
    running = [first]  # the likeliest first
    ended: list[tuple[np.float32, _Hypothesis]] = []  # with log_prob / length ** penalty; the best first
    longest = search.max_length - 1 - len(search.prefix)
    for length in range(1, longest + 1):  # of generated tokens
        logits, h, c, attention = yield [(search.start, *beam.token_ids)[-1] for beam in running], h, c
        log_probs = _log_softmax(logits)
        for row, beam in zip(log_probs, running, strict=True):
            row[search.repeating(beam.token_ids)] = -np.inf
        scores = log_probs + np.stack([beam.log_prob for beam in running])[:, None]  # (beams, vocab_size)
        # Twice as many as beams, so that enough candidates remain if some of them end.
        best = _largest(scores.ravel(), 2 * num_beams)
        parents, tokens = np.divmod(best, scores.shape[1])
        candidates = [
            running[parent].extended(int(token), log_probs[parent, token], attention[parent])
            for parent, token in zip(parents, tokens, strict=True)
        ]
        at_end = (tokens == search.end) | (length == longest)
        for candidate, has_ended in zip(candidates[:num_beams], at_end, strict=False):
            if has_ended:
                ended.append((candidate.log_prob / length**penalty, candidate))
        ended = sorted(ended, key=lambda caption: -caption[0])[:num_beams]
        continuing = np.flatnonzero(~at_end)[:num_beams]
        if not len(continuing):
            break
        running = [candidates[number] for number in continuing]
        h, c = h[parents[continuing]], c[parents[continuing]]
        # An estimate of the score that a running caption can still reach: a longer caption may score better.
        if len(ended) == num_beams and running[0].log_prob / length**penalty <= ended[-1][0]:
            break
    return [caption for _, caption in ended[: search.num_captions]]


def _largest(values: Floats, number: int) -> NDArray[np.intp]:
    """Where the largest values are, in descending order; sorting a whole vocabulary would take longer."""
    # At least `number` of the maxima reach this bound, so the `number` largest values do as well.
    maxima = np.maximum.reduceat(values, np.arange(0, len(values), 64))
    bound = np.partition(maxima, -number)[-number] if number <= len(maxima) else -np.inf
    places = np.flatnonzero(values >= bound)
    return places[np.argsort(-values[places])[:number]]


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="Caption photos with ONNX Runtime.")
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="file or URL")
    parser.add_argument("--folder", default=Path(__file__).parent, help="of the exported captioner (default: this one)")
    parser.add_argument("--precision", help="float32, float16 or int8; default: the first of these that it holds")
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
