"""Start the encoder from a pretrained vision model of transformers or timm."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel, TimmBackboneConfig
from transformers.utils import cached_file

from modeling_showattend.image_processing_showattend import ShowAttendImageProcessor
from modeling_showattend.modeling_showattend import make_backbone
from showattend.checkpoints import DAMAGED

# New for each feature map in transformers' ConvNeXt and Swin backbones, which read the map before the classifier's.
NEW_LAYERS = ("hidden_states_norms.",)


def load_backbone(source: str) -> tuple[PreTrainedModel, ShowAttendImageProcessor]:
    """Load a pretrained vision model and an image processor for it.

    Args:
        source: The Hub id or folder of a transformers model with its image processor, or of a timm model. Of a model of
            images and texts, such as CLIP, the vision model is taken.

    Returns:
        The model that [`make_backbone`] makes of its config, with weights, and an image processor with its size,
        interpolation, mean and standard deviation. Images are resized to this size, not cropped: a caption is about the
        whole image.

    Raises:
        OSError: If there is none, or it is damaged.
        ValueError: If it has no feature maps.
        ImportError: If it is a timm model and timm is not installed.
    """
    if source.count("/") > 1 and not Path(source).is_dir():
        raise FileNotFoundError(f"There is no folder {source} for `encoder`.")
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        image_processor = _image_processor(AutoImageProcessor.from_pretrained(source, trust_remote_code=False))
    except DAMAGED as error:
        raise _unreadable(source, error) from error
    config = getattr(config, "vision_config", config)
    is_timms = config.model_type == "timm_wrapper"
    backbone = make_backbone(TimmBackboneConfig(backbone=config.architecture) if is_timms else config)
    try:
        state = _timm_weights(source, config.architecture) if is_timms else _weights(source, backbone)
        backbone.load_state_dict(state)
    except DAMAGED as error:
        raise _unreadable(source, error) from error
    return backbone, image_processor


def _unreadable(source: str, error: Exception) -> OSError:
    return OSError(f"`encoder` {source} cannot be loaded: {' '.join(str(error).split())[:300]}")


def _weights(source: str, backbone: PreTrainedModel) -> dict[str, torch.Tensor]:
    # TimmBackbone's own method reads no folder.
    from_pretrained: Any = PreTrainedModel.from_pretrained
    pretrained, report = from_pretrained.__func__(
        type(backbone), source, config=backbone.config, output_loading_info=True
    )
    state = backbone.state_dict()  # without what `make_backbone` removes
    missing = [name for name in sorted(report["missing_keys"]) if name in state and not name.startswith(NEW_LAYERS)]
    if missing:
        raise ValueError(f"its weights lack {', '.join(missing[:3])} of a {backbone.config.model_type}")
    return {name: weights for name, weights in pretrained.state_dict().items() if name in state}


def _timm_weights(source: str, architecture: str) -> dict[str, torch.Tensor]:
    import timm

    file = cached_file(source, "model.safetensors")
    network = timm.create_model(
        architecture, pretrained=True, pretrained_cfg_overlay={"file": file}, features_only=True, out_indices=(-1,)
    )
    return {f"_backbone.{name}": weights for name, weights in network.state_dict().items()}


def _image_processor(theirs: Any) -> ShowAttendImageProcessor:
    if hasattr(theirs, "data_config"):  # timm's
        data = theirs.data_config
        _, height, width = data["input_size"]
        settings = {"image_mean": data["mean"], "image_std": data["std"]}
        settings["resample"] = Image.Resampling[data["interpolation"].upper()]
    else:
        size = dict(theirs.crop_size if getattr(theirs, "do_center_crop", False) else theirs.size)
        height, width = (size.get(side, size.get("shortest_edge")) for side in ("height", "width"))
        if height is None or width is None:
            raise ValueError(f"its image processor's size {size} has no height and width")
        names = ("resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        settings = {name: getattr(theirs, name) for name in names}
    return ShowAttendImageProcessor(size={"height": height, "width": width}, **settings)
