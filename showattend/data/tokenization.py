"""The tokenizer: BERT's WordPiece, whole or reduced to the tokens that the captions use."""

import string
from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer, BertTokenizer
from transformers.models.bert.tokenization_bert import load_vocab

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MODEL_MAX_LENGTH = 512  # as in bert-base-uncased


def load_tokenizer(name: str | Path = "bert-base-uncased") -> BertTokenizer:
    """Loads a BERT tokenizer.

    Args:
        name: A Hub id, a folder with a saved tokenizer, or a `vocab.txt` (any `*.txt`, one token a line; text is
            lower-cased, as for bert-base-uncased).

    Raises:
        OSError: If there is none, or the Hub cannot be reached.
        ValueError: If it is not a BERT tokenizer with a complete vocabulary.
    """
    path = Path(name).expanduser()
    if path.suffix == ".txt":
        if not path.is_file():
            raise FileNotFoundError(f"there is no vocabulary file {path}")
        try:
            vocab = load_vocab(path)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a vocabulary with one token a line: it is not UTF-8 text") from error
        # `vocab_file=` is silently ignored, which leaves a vocabulary of five special tokens.
        tokenizer = _checked(BertTokenizer(vocab=vocab), name)
    else:
        # Given a Hub id that cannot be reached, BertTokenizer returns five special tokens where AutoTokenizer raises;
        # AutoTokenizer in turn does not load a folder with nothing but a vocab.txt.
        loader = BertTokenizer if path.is_dir() else AutoTokenizer
        try:
            loaded = loader.from_pretrained(path if path.is_dir() else str(name))
        except Exception as error:  # tokenizers raises bare Exception
            raise OSError(
                f"cannot load the tokenizer {str(name)!r}, neither from a folder nor from the Hub: give a folder or a "
                f"vocab.txt ({' '.join(str(error).split())[:200]})"
            ) from error
        tokenizer = _checked(loaded, name)
    tokenizer.model_max_length = min(tokenizer.model_max_length, MODEL_MAX_LENGTH)
    return tokenizer


def _checked(tokenizer: object, name: str | Path) -> BertTokenizer:
    if not isinstance(tokenizer, BertTokenizer):
        raise ValueError(f"{name} holds a {type(tokenizer).__name__}, expected a BertTokenizer")
    # Exclude added tokens: a special token missing from the vocabulary is silently added.
    vocab = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    if missing := [token for token in SPECIAL_TOKENS if token not in vocab]:
        raise ValueError(f"the vocabulary of {name} lacks {', '.join(missing)}")
    if len(vocab) == len(SPECIAL_TOKENS):
        raise ValueError(f"{name} holds no vocabulary: it has only the special tokens")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError(f"the vocabulary of {name} has gaps: a token occurs in it twice")
    return tokenizer


def prune_tokenizer(tokenizer: BertTokenizer, captions: Iterable[str]) -> BertTokenizer:
    """Returns a plain BERT tokenizer with only the tokens that `captions` use, in their original order.

    The special tokens come first ([PAD] = 0). The tokenization of `captions` does not change: WordPiece takes the
    longest token that fits, and pruning keeps every token that it took and adds none.
    """
    used = {token for caption in captions for token in tokenizer.tokenize(caption)}.difference(SPECIAL_TOKENS)
    if not used:
        raise ValueError("cannot prune the vocabulary: there is no token in the captions")
    vocab = tokenizer.get_vocab()
    # Letters and digits stay, used or not: an unseen word (in a prefix that a user types, in a validation caption) is
    # then spelled out instead of lost as [UNK]. On Flickr8k they add a dozen rows and, being the shortest tokens,
    # change no caption's tokenization.
    characters = string.ascii_letters + string.digits
    used |= {token for character in characters for token in (character, f"##{character}") if token in vocab}
    tokens = [*SPECIAL_TOKENS, *sorted(used, key=vocab.__getitem__)]
    return BertTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        do_lower_case=tokenizer.do_lower_case,
        tokenize_chinese_chars=tokenizer.tokenize_chinese_chars,
        strip_accents=tokenizer.strip_accents,
        model_max_length=tokenizer.model_max_length,
    )
