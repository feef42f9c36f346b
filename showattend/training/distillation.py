"""What to learn a photo from: those of its captions that agree best, and the best of what trained captioners say.

Five people tell of one photo in five ways, and a captioner that is to repeat them all learns to waver. What captioners
say of it lies closer together; the best of that brings greedy search near to beam search (sequence-level knowledge
distillation, Kim and Rush, 2016, https://arxiv.org/abs/1606.07947, section 3.3).
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from modeling_showattend.metrics import CiderMeteorReward

OWN_CAPTIONS = 3  # of a photo that are kept
TEACHER_CAPTIONS = 2  # that come to them
METEOR_WEIGHT = 5.0  # in the score by which both are chosen

Captions = Mapping[str, Sequence[str]]  # image id -> its captions


def distilled_captions(captions: Captions, teachers: Sequence[str | Path]) -> dict[str, list[str]]:
    """Each image's own captions that agree best with its others, and the teachers' that agree best with all its own.

    Args:
        captions: Those of the training photos.
        teachers: JSON Lines that `scripts/caption.py` wrote of them, with any number of captions a photo.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If it is in another format, or a photo is in none of them.
    """
    told: dict[str, dict[str, None]] = defaultdict(dict)  # in order, each once
    for path in teachers:
        for image_id, caption in read_captions(path):
            told[image_id][caption] = None
    if missing := captions.keys() - told.keys():
        raise ValueError(
            f"{', '.join(map(str, teachers))} caption {len(captions) - len(missing)} of {len(captions)} training "
            f"photos; {min(missing)} is missing: have scripts/caption.py caption all of them."
        )
    candidates = {image_id: list(told[image_id]) for image_id in captions}
    own = _best(captions, agreement(captions), OWN_CAPTIONS)
    theirs = _best(candidates, _scores(candidates, captions), TEACHER_CAPTIONS)
    return {image_id: own[image_id] + theirs[image_id] for image_id in captions}


def agreement(captions: Captions) -> dict[str, list[float]]:
    """The score of each caption with the image's other captions as references; 0 where it is the only one."""
    scores = {image_id: [0.0] * len(own) for image_id, own in captions.items()}
    for number in range(max(map(len, captions.values()))):
        some = {image_id: own for image_id, own in captions.items() if len(own) > max(number, 1)}
        others = {image_id: [*own[:number], *own[number + 1 :]] for image_id, own in some.items()}
        if others:
            judged = {image_id: [own[number]] for image_id, own in some.items()}
            for image_id, [score] in _scores(judged, others).items():
                scores[image_id][number] = score
    return scores


def read_captions(path: str | Path) -> list[tuple[str, str]]:
    """Image id (the file's name) and caption of each row that `scripts/caption.py --output` wrote.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is in another format.
    """
    captions = []
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                captions.append((Path(row["path"]).name, str(row["caption"])))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {number}: no row of path and caption in JSON.") from error
    return captions


def _scores(captions: Captions, references: Captions) -> dict[str, list[float]]:
    pairs = [(image_id, caption) for image_id, own in captions.items() for caption in own]
    image_ids, flat = zip(*pairs, strict=True)
    scores = CiderMeteorReward(references, METEOR_WEIGHT).reward(image_ids, flat)
    of_image: dict[str, list[float]] = defaultdict(list)
    for image_id, score in zip(image_ids, scores.tolist(), strict=True):
        of_image[image_id].append(score)
    return of_image


def _best(captions: Captions, scores: Mapping[str, Sequence[float]], count: int) -> dict[str, list[str]]:
    return {
        image_id: [own[place] for place in sorted(range(len(own)), key=lambda place: -scores[image_id][place])[:count]]
        for image_id, own in captions.items()
    }
