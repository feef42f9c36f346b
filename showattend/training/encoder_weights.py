"""Start the encoder from a trained ResNet."""

from pathlib import Path
from pickle import UnpicklingError

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file

from modeling_showattend.modeling_showattend import ShowAttendForConditionalGeneration
from showattend.hub.conversion import DAMAGED


def load_encoder_weights(model: ShowAttendForConditionalGeneration, weights: str | Path = "IMAGENET1K_V1") -> None:
    """Load the weights of a torchvision ResNet into the captioner's encoder.

    Args:
        weights: The name of torchvision weights (`IMAGENET1K_V1`, `IMAGENET1K_V2`, `DEFAULT`), downloaded once, or a
            file with a torchvision `state_dict` (`.safetensors`, or `.pth` without pickled code). Weights of the
            original ResNet, as in Caffe and Keras, need `stride_in_1x1=True` in the config.

    Raises:
        ValueError: If the name is unknown or the file does not hold this ResNet.
        OSError: If there is no such file or the download fails.
    """
    name = model.config.encoder_name
    path = Path(weights)
    state = _read(path) if path.suffix in (".safetensors", ".pth", ".pt", ".bin") else _download(name, str(weights))
    resnet = torchvision.models.get_model(name, weights=None)
    try:
        # The classifier is not used and may be absent or of another size.
        classifier = {f"fc.{key}": value for key, value in resnet.fc.state_dict().items()}
        resnet.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")} | classifier)
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"{weights} does not hold the torchvision state dict of a {name}.") from error
    model.encoder.resnet.load_state_dict(torch.nn.Sequential(*list(resnet.children())[:-2]).state_dict())


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"The encoder's weights {path} do not exist.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, *DAMAGED) as error:
        # torch's own message suggests loading a pickle that may run code
        raise ValueError(f"{path} is not a readable file of tensors and nothing else.") from error


def _download(name: str, weights: str) -> dict[str, torch.Tensor]:
    known = torchvision.models.get_model_weights(name)
    if weights not in known.__members__:
        raise ValueError(f"{weights!r} is neither a file of weights nor one of {', '.join(known.__members__)}.")
    try:
        return known[weights].get_state_dict(check_hash=True)
    except (OSError, RuntimeError) as error:  # no connection; a damaged download
        raise OSError(
            f"torchvision's {weights} weights of {name} could not be downloaded ({error}): name a file instead."
        ) from error
