"""Words and maps of the attention: the words are the caption's, and the maps lie where the network looked."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import BertTokenizer

from modeling_showattend import ShowAttendImageProcessor, ShowAttendProcessor
from showattend.attention.maps import AttendedCaption, attend, image_maps, words_and_grids

MakeModel = Callable[..., Any]


@pytest.fixture
def grids() -> np.ndarray:
    """Attention of three words on 4 rows of 6 cells."""
    grids = np.random.default_rng(0).random((3, 4, 6)) ** 4
    return (grids / grids.sum(axis=(1, 2), keepdims=True)).astype(np.float32)


def centre(attention: np.ndarray) -> tuple[float, float]:
    """The centre of mass of a map, x and y in pixels."""
    height, width = attention.shape
    return attention.sum(axis=0) @ (np.arange(width) + 0.5), attention.sum(axis=1) @ (np.arange(height) + 0.5)


# --- from a grid to an image -----------------------------------------------------------------------------------------

BOXES = {
    "squashed": ((0, 0, 90, 60), 90, 60),
    "cropped": ((15.3, 0, 74.7, 60), 90, 60),
    "padded": ((-20, 10.5, 110, 49.5), 90, 60),
    "tiny image": ((0, 0, 3, 2), 3, 2),
    "smaller than a pixel": ((0.9, 0.9, 1.1, 1.1), 2, 2),
}


@pytest.mark.parametrize("case", BOXES)
def test_a_map_sums_to_one_and_is_zero_outside_the_box(case: str, grids: np.ndarray) -> None:
    box, width, height = BOXES[case]
    maps = image_maps(grids, box, width, height)
    assert maps.shape == (3, height, width) and maps.dtype == np.float32
    assert maps.min() >= 0
    assert maps.sum(axis=(1, 2)) == pytest.approx(np.ones(3), abs=1e-5)
    left, top, right, bottom = box
    x, y = np.arange(width), np.arange(height)[:, None]  # of the pixels' upper left corners
    outside = (x + 1 <= left) | (x >= right) | (y + 1 <= top) | (y >= bottom)
    assert not maps[:, outside].any() and maps[:, ~outside].all()
    assert np.array_equal(image_maps(grids[1], box, width, height), maps[1])


def test_a_cell_spreads_as_bilinear_interpolation_smoothed_once_more() -> None:
    cell = 20
    one = np.zeros((1, 9), dtype=np.float32)
    one[0, 4] = 1
    actual = image_maps(one, (0, 0, 9 * cell, 1), 9 * cell, 1)[0]
    even = np.ones(cell) / cell
    bilinear = np.convolve(even, even)
    expected = np.convolve(bilinear, bilinear)  # 4 * cell - 3 pixels
    around = (9 * cell - len(expected)) / 2
    pixels = np.arange(9 * cell)
    assert actual == pytest.approx(np.interp(pixels - around, np.arange(len(expected)), expected, 0, 0), abs=3e-5)


def test_equal_weights_make_an_even_map() -> None:
    maps = image_maps(np.ones((7, 7)), (10, 0, 50, 40), 60, 40)
    assert maps[:, 10:50] == pytest.approx(np.full((40, 40), 1 / 1600), rel=1e-5)


def test_the_weight_of_a_border_cell_stays_in_its_corner() -> None:
    corner = np.zeros((4, 6))
    corner[0, 5] = 1
    attention = image_maps(corner, (0, 0, 120, 40), 120, 40)
    assert attention.argmax() == 119  # the upper right pixel
    assert attention[:20, 80:].sum() > 0.9
    two = np.zeros((1, 10))
    two[0, [2, 9]] = 1  # one inside, one at the border
    assert image_maps(two, (0, 0, 100, 1), 100, 1)[0, 50:].sum() == pytest.approx(0.5)


def test_every_cell_lies_in_its_row_and_column() -> None:
    box = (12.5, 5, 72.5, 45)  # cells of 10 x 10 pixels
    for row in range(1, 3):
        for column in range(1, 5):
            one = np.zeros((4, 6))
            one[row, column] = 1
            expected = 12.5 + 10 * column + 5, 5 + 10 * row + 5
            # Beyond two cells from a border nothing is reflected; nearer, the centre moves inwards by a few pixels.
            assert centre(image_maps(one, box, 90, 60)) == pytest.approx(expected, abs=0.5)


def test_attention_on_padding_alone_is_nowhere_on_the_image() -> None:
    grid = np.zeros((2, 8, 8))
    grid[0, :, 0] = 1
    grid[1] = 1
    maps = image_maps(grid, (-40, 0, 80, 40), 40, 40)
    assert not maps[0].any() and maps[1].sum() == pytest.approx(1)


def test_resized_maps_hold_the_same_attention(grids: np.ndarray) -> None:
    attended = AttendedCaption("a b c", ["a", "b", "c"], grids, (10, -4, 100, 52), (120, 48))
    small = attended.resized_maps(60, 16)
    assert attended.maps.shape == (3, 48, 120)
    assert attended.maps.reshape(3, 16, 3, 60, 2).sum(axis=(2, 4)) == pytest.approx(small, abs=1e-6)


# --- from tokens to words ---------------------------------------------------------------------------------------

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENS += ["a", "man", "dog", "##s", "##gy", "t", "s", "shirt", "'", "-", ",", ".", "3", "4", "/"]


@pytest.fixture
def spelling() -> ShowAttendProcessor:
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(TOKENS)})
    return ShowAttendProcessor(ShowAttendImageProcessor(), tokenizer)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ("a man", {"a": [0], "man": [1]}),
        ("a dog ##gy ##s", {"a": [0], "doggys": [1, 2, 3]}),
        ("a man ' s t - shirt", {"a": [0], "man's": [1, 2, 3], "t-shirt": [4, 5, 6]}),
        ("dog ##s ' man , a 3 / 4 .", {"dogs'man,": [0, 1, 2, 3, 4], "a": [5], "3/4.": [6, 7, 8, 9]}),
        ("a ' - man '", {"a": [0], "'": [1], "-": [2], "man": [3], "'\0": [4]}),
        ("##s man", {"##s": [0], "man": [1]}),
        ("[UNK] a [UNK] dog [UNK] ##s [SEP] [PAD] [PAD]", {"a": [1], "dogs": [3, 5]}),
        ("[SEP] [PAD]", {}),
    ],
)
def test_tokens_are_joined_as_the_processor_decodes_them(
    tokens: str, words: dict[str, list[int]], spelling: ShowAttendProcessor
) -> None:
    ids = spelling.tokenizer.convert_tokens_to_ids(tokens.split())
    attentions = torch.rand(len(ids), 6, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    joined, grids = words_and_grids(spelling, ids, attentions, rows=2, columns=3)
    assert joined == [word.rstrip("\0") for word in words]
    assert " ".join(joined) == spelling.decode(ids, skip_special_tokens=True)
    assert grids.shape == (len(words), 2, 3) and grids.dtype == np.float32
    for grid, members in zip(grids, words.values(), strict=True):
        assert grid.flatten() == pytest.approx(attentions[members].mean(dim=0).numpy(), abs=1e-6)


def test_a_caption_may_be_joined_while_it_grows(spelling: ShowAttendProcessor) -> None:
    ids = torch.tensor(spelling.tokenizer.convert_tokens_to_ids(["a", "man", "'", "s", "dog", "##s"]))
    attentions = torch.full((6, 4), 0.25, dtype=torch.bfloat16)
    grown = [words_and_grids(spelling, ids[:n], attentions[:n], 2, 2)[0] for n in range(7)]
    last = ["a", "man's", "dogs"]
    assert grown == [[], ["a"], ["a", "man"], ["a", "man", "'"], last[:2], ["a", "man's", "dog"], last]


# --- from an image to words and maps ----------------------------------------------------------------------------------

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 6},
        {"text": "a dog"},
        {"text": "a dog", "num_beams": 6},
        {"do_sample": True},
        {"num_beams": 3, "do_sample": True},
        {"num_beams": 3, "use_cache": False},
    ],
)
def test_the_attention_is_that_of_the_caption(
    make_model: MakeModel, processor: ShowAttendProcessor, options: dict[str, Any]
) -> None:
    """Teacher forcing of the caption, token by token from [CLS], looks at the same places."""
    model = make_model(seed=6, context_gate=True, deep_output=True)  # its beams overtake each other
    torch.manual_seed(0)
    special = [0, 1, 2, 4]  # would be no words
    attended = attend(model, processor, IMAGE, min_length=8, max_length=12, suppress_tokens=special, **options)
    assert attended.words == attended.caption.split() and len(attended.words) > 5
    assert attended.caption.startswith(options.get("text", ""))
    ids = processor.tokenizer.convert_tokens_to_ids(attended.words)  # no word of this vocabulary has two tokens
    inputs = processor(images=IMAGE, return_tensors="pt")
    with torch.no_grad():
        (attentions,) = model(**inputs, decoder_input_ids=torch.tensor([[2, *ids[:-1]]])).cross_attentions
    assert attended.grids.reshape(len(ids), 4) == pytest.approx(attentions[0, 0].numpy(), abs=1e-5)
    assert np.ptp(attended.grids, axis=0).max() > 0.05  # words look at different places
    assert (attended.size, attended.box) == ((80, 50), (0, 0, 80, 50))
    assert attended.maps.shape == (len(ids), 50, 80)


def test_the_words_of_a_random_captioner_are_its_caption(make_model: MakeModel, spelling: ShowAttendProcessor) -> None:
    model = make_model(vocab_size=len(TOKENS))
    spelling.image_processor = ShowAttendImageProcessor(size={"height": 64, "width": 96})
    seen = set()
    for seed in range(3):
        torch.manual_seed(seed)
        attended = attend(model, spelling, IMAGE, do_sample=True, top_k=0, suppress_tokens=[3])
        torch.manual_seed(seed)
        inputs = spelling(images=IMAGE, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=True, top_k=0, suppress_tokens=[3])
        assert [" ".join(attended.words)] == [attended.caption] == spelling.batch_decode(ids, skip_special_tokens=True)
        assert attended.grids.shape == (len(attended.words), 2, 3)
        assert attended.grids.sum(axis=(1, 2)) == pytest.approx(np.ones(len(attended.words)), abs=1e-5)
        seen |= set("".join(attended.words))
    assert {"'", "-", ","} < seen


def test_an_empty_caption_has_no_maps(make_model: MakeModel, processor: ShowAttendProcessor) -> None:
    attended = attend(make_model(), processor, IMAGE, prefix_allowed_tokens_fn=lambda *_: [3])
    assert (attended.caption, attended.words) == ("", [])
    assert attended.grids.shape == (0, 2, 2) and attended.maps.shape == (0, 50, 80)


def test_one_caption_at_a_time(make_model: MakeModel, processor: ShowAttendProcessor) -> None:
    with pytest.raises(ValueError, match="num_return_sequences"):
        attend(make_model(), processor, IMAGE, num_beams=2, num_return_sequences=2)


def looks_at_the_brightest_cell(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first feature of a cell becomes its brightness, and the attention looks at nothing else."""

    def brightness(pixel_values: torch.Tensor) -> torch.Tensor:
        cells = F.avg_pool2d(pixel_values.mean(dim=1), 32, ceil_mode=True).flatten(1)  # (1, positions)
        return F.pad(cells.unsqueeze(-1), (0, model.config.encoder_dim - 1))

    monkeypatch.setattr(model.encoder, "frozen_features", brightness)
    attention = model.decoder.attention
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        attention.U.weight[:, 0] = 1
        attention.A.weight.fill_(5)


@pytest.mark.parametrize(
    "settings",
    [
        {},  # squashed
        {"size": {"height": 160, "width": 288}},
        {"size": {"shortest_edge": 256}, "do_center_crop": True},
        {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": {"height": 256, "width": 320}},  # padded
        {"do_resize": False},
    ],
    ids=["squashed", "oblong", "cropped", "padded", "as it is"],
)
def test_the_map_lies_where_the_network_looked(
    make_model: MakeModel,
    processor: ShowAttendProcessor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    settings: dict[str, Any],
) -> None:
    """A white spot on a dark image that is not square, stored upright or turned."""
    model = make_model()
    looks_at_the_brightest_cell(model, monkeypatch)
    processor.image_processor = ShowAttendImageProcessor(**settings)
    width, height, y, spot = 480, 320, 80, 40  # half the spot's width
    for x in (168, 312):
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[y - spot : y + spot, x - spot : x + spot] = 255
        upright = Image.fromarray(pixels)
        rotated, back = Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270
        for orientation, stored in ((1, upright), (6, upright.transpose(rotated)), (8, upright.transpose(back))):
            exif = Image.Exif()
            exif[0x0112] = orientation
            stored.save(tmp_path / "image.png", exif=exif)
            attended = attend(model, processor, tmp_path / "image.png", max_length=2, suppress_tokens=[0, 1, 2, 3, 4])
            assert attended.size == (width, height)
            attention = attended.maps[0]
            assert attention.shape == (height, width)
            assert centre(attention) == pytest.approx((x, y), abs=30)
            assert attention[y - 2 * spot : y + 2 * spot, x - 2 * spot : x + 2 * spot].sum() > 0.75
