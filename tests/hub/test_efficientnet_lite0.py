from pathlib import Path
from typing import Any

import pytest
import torch

timm = pytest.importorskip("timm")

from showattend.hub.efficientnet_lite0 import to_timm  # noqa: E402
from showattend.training.backbones import load_backbone  # noqa: E402


def test_weights_by_their_order(tmp_path: Path) -> None:
    """The package has them under other names, in the same order, and may have counters elsewhere."""
    torch.manual_seed(0)
    network: Any = timm.create_model("tf_efficientnet_lite0").eval()
    weights = [value for name, value in network.state_dict().items() if "num_batches" not in name]
    state = {f"_layer.{number}": value for number, value in enumerate(weights)}
    converted = to_timm({"num_batches_tracked": torch.tensor(7), **state}).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        assert torch.equal(converted(images), expected)

    timm.models.save_for_hf(converted, str(tmp_path), safe_serialization=True)
    backbone, image_processor = load_backbone(str(tmp_path))
    assert backbone.config.backbone == "tf_efficientnet_lite0"
    assert backbone.channels == [320]
    assert dict(image_processor.size) == {"height": 224, "width": 224}
    assert list(image_processor.image_mean) == list(image_processor.image_std) == [0.5, 0.5, 0.5]
    assert image_processor.resample == 3  # bicubic


def test_another_network_is_refused() -> None:
    with pytest.raises(ValueError):
        to_timm({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)})
