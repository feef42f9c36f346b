"""Tools around the model of `modeling_showattend`: caption, train, evaluate, visualize, export and share."""

from pathlib import Path

# In a clone, the published captioner; an installed package has none.
DEFAULT_CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "showattend-resnet50-flickr8k"
