"""Statistics of captions beside the metrics: how varied they are, and how often they repeat, break off or invent."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from .exact_meteor import FUNCTION_WORDS
from .ptb import tokenize_in_python, tokenize_references

# Words that rarely end an English caption: one that ends in them was probably cut short.
_DANGLING = re.compile(
    r"(?:^| )(?:a|an|the|his|its|their|of|with|in|on|at|to|for|from|into|onto|between|and|or|while|as|is|are|that)$"
)
_TWICE_IN_A_ROW = re.compile(r"(?:^| )(\S+) \1(?: |$)")


def caption_statistics(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]] | None = None
) -> dict[str, float]:
    """Describe captions by statistics; both arguments are as in [`score_captions`].

    Returns:
        distinct_words: the number of different words in all captions.
        distinct_captions: the number of different captions.
        mean_length: words per caption.
        repeated: percent of captions with a word twice in a row, or a content word twice. Content words are all words
            except METEOR's function words. Of Flickr8k's own captions, 7 % count.
        dangling: percent of captions that end in a function word such as "a", "of" or "with". Of Flickr8k's own
            captions, 0.6 % count ("looking on").
        unreferenced: percent of content words that occur in none of the image's references. It hints at hallucination
            but is not CHAIR (Rohrbach et al., 2018, https://arxiv.org/abs/1809.02156): it has no list of objects, and
            also counts synonyms, other forms of a word ("dogs" for "dog") and what the references leave out. Flickr8k's
            own captions score 41 to 45 against the other four of the image. Left out without references.
    """
    if not predictions:
        raise ValueError("There are no captions to describe.")
    captions = tokenize_in_python(list(predictions.values()))
    words = [word for caption in captions for word in caption.split()]
    statistics = {
        "distinct_words": len(set(words)),
        "distinct_captions": len(set(captions)),
        "mean_length": len(words) / len(captions),
        "repeated": _percent(list(map(_repeats, captions))),
        "dangling": _percent([bool(_DANGLING.search(caption)) for caption in captions]),
    }
    if references is not None:
        known = tokenize_references({image_id: references[image_id] for image_id in predictions}, tokenize_in_python)
        unreferenced = [
            word not in " ".join(texts).split()
            for caption, texts in zip(captions, known.values(), strict=True)
            for word in _content_words(caption)
        ]
        statistics["unreferenced"] = _percent(unreferenced)
    return statistics


def _content_words(caption: str) -> list[str]:
    return [word for word in caption.split() if word not in FUNCTION_WORDS]


def _repeats(caption: str) -> bool:
    counts = Counter(_content_words(caption))
    return bool(_TWICE_IN_A_ROW.search(caption)) or max(counts.values(), default=0) > 1


def _percent(values: Sequence[bool]) -> float:
    return 100 * sum(values) / max(len(values), 1)
