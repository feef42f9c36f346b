"""Generation settings: a checkpoint's defaults with a caller's changes, checked before any work is done."""

from copy import deepcopy
from typing import Any

from transformers import GenerationConfig


def generation_config(defaults: GenerationConfig, **changes: Any) -> GenerationConfig:
    """A copy of a checkpoint's generation config with changes.

    Args:
        changes: Fields of `GenerationConfig`; None keeps the checkpoint's value. If `num_beams` is not given,
            sampling uses 1, and beam search at least `num_return_sequences`.

    Raises:
        ValueError: If a field is unknown or out of range, or two contradict each other.
    """
    settings: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    for name, least in (("num_beams", 1), ("num_return_sequences", 1), ("max_length", 2)):
        value = settings.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"`{name}` must be at least {least}, not {value!r}.")
    do_sample = settings.get("do_sample", defaults.do_sample)
    captions = settings.get("num_return_sequences", defaults.num_return_sequences) or 1
    if "num_beams" not in settings:
        settings["num_beams"] = 1 if do_sample else max(captions, defaults.num_beams or 1)
    beams = settings["num_beams"]
    if not do_sample and beams < captions:
        raise ValueError(f"{captions} captions of an image need {captions} or more `num_beams`, not {beams}.")
    if "length_penalty" in settings and beams == 1:
        raise ValueError("`length_penalty` chooses among beams: it needs `num_beams` of 2 or more.")
    config = deepcopy(defaults)
    try:
        unknown = config.update(**settings)
    except TypeError as error:
        raise ValueError(f"A setting of generate has the wrong type: {error}.") from error
    if unknown:
        raise ValueError(f"generate has no setting {', '.join(unknown)}.")
    return config
