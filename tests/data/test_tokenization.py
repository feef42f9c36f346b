from pathlib import Path

import pytest
from PIL import Image
from tiny_flickr import run_command
from transformers import AutoTokenizer, BertTokenizer

from showattend.data.tokenization import SPECIAL_TOKENS, load_tokenizer, prune_tokenizer

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
# Laid out as BERT's: [PAD] first, unused rows before the other special tokens, characters, words, ## tokens.
TOKENS = [
    *["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "-", "'"],
    *CHARACTERS,
    *["dog", "doghouse", "horse", "horses", "run", "shirt", "the", "two"],
    *[f"##{character}" for character in CHARACTERS],
    *["##s", "##ning", "##house", "##back"][1:],
]
CAPTIONS = ["A Dog running .", "two horses, the doghouse", "a t-shirt on horseback", "Dög's"]


@pytest.fixture
def vocab_file(tmp_path: Path) -> Path:
    path = tmp_path / "pieces.txt"
    path.write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def tokenizer(vocab_file: Path) -> BertTokenizer:
    return load_tokenizer(vocab_file)


def test_a_vocabulary_file_is_loaded_whole_and_behaves_like_bert_uncased(tokenizer: BertTokenizer) -> None:
    assert type(tokenizer) is BertTokenizer
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(TOKENS)}
    assert tokenizer.model_max_length == 512
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id) == (0, 3, 4)
    assert tokenizer.convert_ids_to_tokens(tokenizer("A Dog running . \N{SNOWMAN}").input_ids) == [
        *["[CLS]", "a", "dog", "run", "##ning", ".", "[UNK]", "[SEP]"]
    ]


def test_windows_line_ends_do_not_change_the_tokens(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join(TOKENS).encode())
    assert load_tokenizer(path).get_vocab() == {token: index for index, token in enumerate(TOKENS)}


def test_a_folder_is_loaded_whether_saved_or_with_nothing_but_a_vocabulary(
    tmp_path: Path, tokenizer: BertTokenizer
) -> None:
    tokenizer.save_pretrained(tmp_path / "saved")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "vocab.txt").write_text("\n".join(TOKENS))
    for folder in ("saved", "bare"):
        loaded = load_tokenizer(tmp_path / folder)
        assert type(loaded) is BertTokenizer
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.model_max_length == 512


def test_a_hub_id_is_looked_up_on_the_hub(monkeypatch: pytest.MonkeyPatch, tokenizer: BertTokenizer) -> None:
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", {"bert-base-uncased": tokenizer}.__getitem__)
    assert load_tokenizer() is tokenizer


def test_an_unreachable_hub_gives_one_sentence_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError("We couldn't connect to the Hub.\nCheck your connection.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(OSError, match=r"'some/tokenizer'.*give a folder or a vocab.txt") as error:
        load_tokenizer("some/tokenizer")
    assert "\n" not in str(error.value)


def test_a_missing_vocabulary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no vocabulary file .*nowhere\.txt"):
        load_tokenizer(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n".join(token for token in TOKENS if token != "[MASK]"), r"lacks \[MASK\]"),
        ("\n".join(SPECIAL_TOKENS), "only the special tokens"),
        ("\n".join([*TOKENS, "dog", "end"]), "occurs in it twice"),
        ("image,caption\na.jpg,a dog", r"lacks \[PAD\], \[UNK\]"),
    ],
)
def test_a_file_that_is_not_a_vocabulary_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "vocab.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path / "vocab.txt")


def test_an_empty_folder_is_refused_though_transformers_takes_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only the special tokens"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name: object())
    with pytest.raises(ValueError, match="gpt2 holds a object, expected a BertTokenizer"):
        load_tokenizer("gpt2")


def test_pruning_keeps_special_tokens_first_and_the_used_tokens_in_order(tokenizer: BertTokenizer) -> None:
    pruned = prune_tokenizer(tokenizer, iter(["two dogs running"]))
    tokens = sorted(pruned.get_vocab(), key=pruned.get_vocab().__getitem__)
    words = [token for token in tokens if len(token.removeprefix("##")) > 1]
    assert words == [*SPECIAL_TOKENS, "dog", "run", "two", "##ning"]
    assert tokens[:5] == list(SPECIAL_TOKENS)
    assert tokens[5:] == [token for token in TOKENS if token in tokens[5:]]
    assert [pruned.pad_token_id, pruned.unk_token_id, pruned.cls_token_id, pruned.sep_token_id] == [0, 1, 2, 3]
    assert type(pruned) is BertTokenizer
    assert pruned.model_max_length == 512


def test_pruning_does_not_change_the_tokenization_of_the_captions(tokenizer: BertTokenizer) -> None:
    pruned = prune_tokenizer(tokenizer, CAPTIONS)
    assert len(pruned) < len(tokenizer)
    for caption in CAPTIONS:
        before = tokenizer.convert_ids_to_tokens(tokenizer(caption).input_ids)
        after = pruned.convert_ids_to_tokens(pruned(caption).input_ids)
        assert after == before
        assert "[UNK]" not in after


def test_an_unseen_word_is_spelled_after_pruning(tokenizer: BertTokenizer) -> None:
    pruned = prune_tokenizer(tokenizer, ["two dogs"])
    assert pruned.tokenize("shirt9") == ["s", "##h", "##i", "##r", "##t", "##9"]


def test_a_cased_tokenizer_stays_cased(tokenizer: BertTokenizer) -> None:
    cased = BertTokenizer(vocab={**tokenizer.get_vocab(), "Dog": len(TOKENS)}, do_lower_case=False)
    assert prune_tokenizer(cased, ["the Dog"]).tokenize("the Dog") == ["the", "Dog"]


def test_a_pruned_tokenizer_is_saved_and_loaded_by_auto_tokenizer(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    pruned = prune_tokenizer(tokenizer, CAPTIONS)
    pruned.save_pretrained(tmp_path / "pruned")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "pruned")
    assert type(loaded) is BertTokenizer
    assert loaded.get_vocab() == pruned.get_vocab()
    assert [loaded(caption).input_ids for caption in CAPTIONS] == [pruned(caption).input_ids for caption in CAPTIONS]
    assert loaded.decode(loaded("two horses, the dog").input_ids, skip_special_tokens=True) == "two horses, the dog"


def test_nothing_to_prune_to_is_an_error(tokenizer: BertTokenizer) -> None:
    with pytest.raises(ValueError, match="no token in the captions"):
        prune_tokenizer(tokenizer, ["", "\N{SNOWMAN}"])


def test_the_command_saves_a_tokenizer_of_the_train_captions(
    tmp_path: Path, vocab_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def prune(tokenizer: Path, output_dir: Path) -> int:
        arguments = ["--dataset", data, "--tokenizer", tokenizer, "--output_dir", output_dir]
        return run_command("prune-tokenizer", *arguments)

    data = tmp_path / "data"
    (data / "Images").mkdir(parents=True)
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (8, 8)).save(data / "Images" / name)
    (data / "captions.txt").write_text("image,caption\n1.jpg,the dog\n2.jpg,two horses\n")
    (data / "Flickr_8k.trainImages.txt").write_text("1.jpg\n")
    (data / "Flickr_8k.devImages.txt").write_text("2.jpg\n")

    assert prune(vocab_file, tmp_path / "pruned") == 0
    vocab = AutoTokenizer.from_pretrained(tmp_path / "pruned").get_vocab()
    assert {"the", "dog"} <= vocab.keys()
    assert not {"two", "horses"} & vocab.keys()
    assert f"{len(vocab)} of {len(TOKENS)} tokens" in capsys.readouterr().out

    assert prune(tmp_path / "no.txt", tmp_path / "pruned") == 2
    assert capsys.readouterr().err == f"error: there is no vocabulary file {tmp_path / 'no.txt'}\n"

    (tmp_path / "file").touch()
    assert prune(vocab_file, tmp_path / "file") == 2
    assert capsys.readouterr().err.endswith("file cannot be written: File exists.\n")
