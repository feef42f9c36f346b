"""The sizes and switches of a Show, Attend and Tell captioner."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

# Channels of each torchvision ResNet's last feature map, which `encoder_dim` follows.
ENCODER_DIMS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048, "resnet152": 2048}


@strict
class ShowAttendConfig(PreTrainedConfig):
    """Configuration of [`ShowAttendForConditionalGeneration`].

    Args:
        encoder_name: The torchvision ResNet that encodes the image: `resnet18`, `resnet34`, `resnet50` (the default),
            `resnet101` or `resnet152`.
        backbone_config: Instead of `encoder_name`, the config of another vision model, or its dict with `model_type`:
            any that `AutoBackbone` takes (ConvNeXt, Swin, DINOv2, ..., timm's as `TimmBackboneConfig`), or that of a
            vision transformer (ViT, CLIP's or SigLIP's vision model, ...). The grid is the last of its `out_features`,
            without class token and registers.
        stride_in_1x1: Where the bottlenecks of ResNet-50 and deeper halve the grid: in the 3x3 convolution (False,
            torchvision's choice) or in the first 1x1 (True, the original ResNet's; Detectron2 has the same option).
            Weights of either kind load into both without an error, and the wrong choice gives worse features.
        finetune_last_stages: How many of the encoder's stages (of a vision transformer: layers) are trained, counted
            from the last (0: none). Everything else is frozen. BatchNorm statistics never change, in any stage.
        embed_size: Length of a token's embedding.
        attention_dim: Units of the attention's hidden layer.
        encoder_dim: Channels of the grid features. It follows from the encoder and need not be given; with
            `backbone_config`, the model sets it.
        decoder_dim: Units of the LSTM.
        dropout: Probability of dropping a unit before the output layer.
        feature_dropout: Probability of dropping a channel of an image's grid, at all positions at once.
        word_dropout: Probability of zeroing the embedding of a token that the decoder reads.
        vocab_size: Tokens of the tokenizer (30,522 in bert-base-uncased).
        context_gate: Scale the context vector by a gate, a number from 0 to 1 that the LSTM's state predicts at every
            step (beta in section 4.2.1 of Xu et al., 2015).
        deep_output: Predict a token from the state, the context and the previous token (equation 7 of the paper)
            instead of from the state alone.
        attention_type: `soft` reads the expected context, the sum of the grid under the attention's weights. `hard`
            looks at one position at each step of training, drawn from the weights (section 4.1 of the paper).
        likeliest_position: With hard attention in eval mode, look at the position with the largest weight instead of
            reading the expected context.
        doubly_stochastic_penalty: Weight (lambda in equation 14 of the paper) of the penalty that encourages each
            caption to attend to all positions of the grid equally in total. 0 disables it.
        label_smoothing: Share of the target probability that is spread evenly over the vocabulary in training.
        pad_token_id: `[PAD]` of the tokenizer.
        bos_token_id: `[CLS]` of the tokenizer, from which every caption starts.
        eos_token_id: `[SEP]` of the tokenizer, with which every caption ends.

    Raises:
        ValueError: If `encoder_name`, `attention_type` or the `model_type` of `backbone_config` is unknown, both
            encoders are given, `encoder_dim` does not fit, or a number is out of range.
    """

    model_type = "showattend"
    attribute_map = {"hidden_size": "decoder_dim"}
    sub_configs = {"backbone_config": AutoConfig}

    encoder_name: str | None = None
    backbone_config: dict | PreTrainedConfig | None = None
    stride_in_1x1: bool = False
    finetune_last_stages: int = 0
    embed_size: int = 300
    attention_dim: int = 256
    decoder_dim: int = 512
    dropout: float | int = 0.5
    feature_dropout: float | int = 0.0
    word_dropout: float | int = 0.0
    vocab_size: int = 30522
    context_gate: bool = False
    deep_output: bool = False
    attention_type: str = "soft"
    likeliest_position: bool = False
    doubly_stochastic_penalty: float | int = 0.0
    label_smoothing: float | int = 0.0
    pad_token_id: int = 0
    bos_token_id: int = 101
    eos_token_id: int = 102
    use_cache: bool = True
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, encoder_dim: int | None = None, **kwargs: Any) -> None:
        self.encoder_dim: Any = encoder_dim  # None until the model is made, with a backbone_config
        if self.backbone_config is not None:
            self._check_backbone()
        else:
            self._check_resnet()
        if self.attention_type not in ("soft", "hard"):
            raise ValueError(f"attention_type={self.attention_type!r} is unknown: it is soft or hard.")
        if self.likeliest_position and self.attention_type == "soft":
            raise ValueError("likeliest_position=True needs attention_type='hard': soft attention reads all positions.")
        for name in ("embed_size", "attention_dim", "decoder_dim", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("dropout", "feature_dropout", "word_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and less than 1.")
        if self.doubly_stochastic_penalty < 0:
            raise ValueError(f"doubly_stochastic_penalty={self.doubly_stochastic_penalty} must not be negative.")

        kwargs.setdefault("decoder_start_token_id", self.bos_token_id)
        # The saved folder names the classes and the pipeline that `trust_remote_code=True` loads from it.
        kwargs["auto_map"] = kwargs.get("auto_map") or {
            "AutoConfig": "configuration_showattend.ShowAttendConfig",
            "AutoModel": "modeling_showattend.ShowAttendForConditionalGeneration",
            "AutoModelForImageTextToText": "modeling_showattend.ShowAttendForConditionalGeneration",
        }
        # A single task, so that `pipeline(model=...)` needs no task name; it is the `pipeline_tag` of the model card.
        # transformers 5 has no image-to-text: 5.4 does not know the name, 5.24 maps it to image-text-to-text.
        kwargs["custom_pipelines"] = kwargs.get("custom_pipelines") or {
            "image-to-text": {
                "impl": "pipeline_showattend.ImageCaptioningPipeline",
                "pt": ["AutoModelForImageTextToText"],
                "type": "multimodal",
            }
        }
        super().__post_init__(**kwargs)

    def _check_resnet(self) -> None:
        self.encoder_name = self.encoder_name or "resnet50"
        if self.encoder_name not in ENCODER_DIMS:
            raise ValueError(f"encoder_name={self.encoder_name!r} is unknown: it is one of {', '.join(ENCODER_DIMS)}.")
        channels = ENCODER_DIMS[self.encoder_name]
        if self.encoder_dim not in (None, channels):
            raise ValueError(
                f"encoder_dim={self.encoder_dim} does not fit {self.encoder_name}, whose features have {channels} "
                "channels: leave encoder_dim out."
            )
        self.encoder_dim = channels
        if self.finetune_last_stages not in range(5):
            stages = self.finetune_last_stages
            raise ValueError(f"finetune_last_stages={stages} is not one of 0 (none) to 4 (all stages).")

    def _check_backbone(self) -> None:
        if self.encoder_name is not None:
            raise ValueError(f"encoder_name={self.encoder_name!r} and backbone_config are two encoders: give one.")
        if self.stride_in_1x1:
            raise ValueError(
                "stride_in_1x1=True is for the ResNets of encoder_name: leave it out with backbone_config."
            )
        if self.finetune_last_stages < 0:
            raise ValueError(f"finetune_last_stages={self.finetune_last_stages} must not be negative.")
        if isinstance(self.backbone_config, dict):
            settings = dict(self.backbone_config)
            model_type = settings.pop("model_type", None)
            if model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"backbone_config has the model_type {model_type!r}, which this version of transformers lacks."
                )
            self.backbone_config = AutoConfig.for_model(model_type, **settings)

    @property
    def num_hidden_layers(self) -> int:
        """The decoder has one LSTM cell. Tools that ask for a model's sizes read this."""
        return 1

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int) -> None:
        raise NotImplementedError("The decoder has one LSTM cell: num_hidden_layers cannot be set.")

    @property
    def num_attention_heads(self) -> int:
        """Additive attention has one head."""
        return 1

    @num_attention_heads.setter
    def num_attention_heads(self, value: int) -> None:
        raise NotImplementedError("Additive attention has one head: num_attention_heads cannot be set.")


ShowAttendConfig.register_for_auto_class()
