"""Show, Attend and Tell: an image captioner that is a transformers model."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .configuration_showattend import ShowAttendConfig
from .image_processing_showattend import ShowAttendImageProcessor
from .modeling_showattend import ShowAttendForConditionalGeneration
from .processing_showattend import ShowAttendProcessor

# Once this package is imported, the Auto classes use its code, never a checkpoint's.
AutoConfig.register("showattend", ShowAttendConfig)
AutoModel.register(ShowAttendConfig, ShowAttendForConditionalGeneration)
AutoModelForImageTextToText.register(ShowAttendConfig, ShowAttendForConditionalGeneration)
AutoImageProcessor.register(
    ShowAttendConfig,
    image_processor_classes={"pil": ShowAttendImageProcessor, "torchvision": ShowAttendImageProcessor},
)
AutoProcessor.register(ShowAttendConfig, ShowAttendProcessor)

__all__ = [
    "ShowAttendConfig",
    "ShowAttendForConditionalGeneration",
    "ShowAttendImageProcessor",
    "ShowAttendProcessor",
]
