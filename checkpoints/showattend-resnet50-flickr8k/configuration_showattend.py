"""The sizes and switches of a Show, Attend and Tell captioner."""

from typing import Any

from transformers import PretrainedConfig

# Channels of the last feature map of every torchvision ResNet: what `encoder_dim` follows.
ENCODER_DIMS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048, "resnet152": 2048}


class ShowAttendConfig(PretrainedConfig):
    """Configuration of [`ShowAttendForConditionalGeneration`].

    Args:
        encoder_name: The torchvision ResNet that looks at the photo: `resnet18`, `34`, `50`, `101` or `152`.
        stride_in_1x1: Where the bottlenecks of ResNet-50 and deeper halve the grid: in the 3x3 convolution (False,
            torchvision's choice) or in the first 1x1 (True, the original ResNet's; Detectron2 has the same option).
            Weights of either kind load into both without an error, and the wrong choice gives worse features.
        finetune_last_stages: How many of the ResNet's four stages are trained, counted from the last (0: none).
            Everything before them is frozen. The BatchNorm statistics never change, in no stage.
        embed_size: Length of a word piece's embedding.
        attention_dim: Units of the attention's hidden layer.
        encoder_dim: Channels of the grid features. It follows from `encoder_name` and need not be given.
        decoder_dim: Units of the LSTM.
        dropout: Probability of dropping a unit before the output layer.
        feature_dropout: Probability of dropping a channel of a photo's grid, at all its positions alike.
        word_dropout: Probability of blanking a word piece that the decoder reads.
        vocab_size: Word pieces of the tokenizer (30,522 in bert-base-uncased).
        context_gate: Scale the context vector by a gate, a number from 0 to 1 that the LSTM's state predicts at every
            step (beta in section 4.2.1 of Xu et al., 2015).
        deep_output: Predict the word from the state, the context and the word before (equation 7 of the paper)
            and not from the state alone.
        doubly_stochastic_penalty: Weight (lambda in equation 14 of the paper) of the penalty that asks each
            caption to look at every position of the grid equally much in total. 0 leaves it out.
        label_smoothing: Share of the target probability that is spread evenly over the vocabulary in training.
        pad_token_id: `[PAD]` of the tokenizer.
        bos_token_id: `[CLS]` of the tokenizer, from which every caption starts.
        eos_token_id: `[SEP]` of the tokenizer, with which every caption ends.

    Raises:
        ValueError: If `encoder_name` is unknown, `encoder_dim` does not fit it, or a number is out of range.
    """

    model_type = "showattend"

    def __init__(
        self,
        encoder_name: str = "resnet50",
        stride_in_1x1: bool = False,
        finetune_last_stages: int = 0,
        embed_size: int = 300,
        attention_dim: int = 256,
        encoder_dim: int | None = None,
        decoder_dim: int = 512,
        dropout: float = 0.5,
        feature_dropout: float = 0.0,
        word_dropout: float = 0.0,
        vocab_size: int = 30522,
        context_gate: bool = False,
        deep_output: bool = False,
        doubly_stochastic_penalty: float = 0.0,
        label_smoothing: float = 0.0,
        pad_token_id: int = 0,
        bos_token_id: int = 101,
        eos_token_id: int = 102,
        **kwargs: Any,
    ) -> None:
        if encoder_name not in ENCODER_DIMS:
            raise ValueError(f"encoder_name={encoder_name!r} is unknown: it is one of {', '.join(ENCODER_DIMS)}.")
        if encoder_dim not in (None, ENCODER_DIMS[encoder_name]):
            raise ValueError(
                f"encoder_dim={encoder_dim} does not fit {encoder_name}, whose features have "
                f"{ENCODER_DIMS[encoder_name]} channels: leave encoder_dim out."
            )
        if finetune_last_stages not in range(5):
            raise ValueError(f"finetune_last_stages={finetune_last_stages} is not one of 0 (none) to 4 (all stages).")
        sizes = dict(embed_size=embed_size, attention_dim=attention_dim, decoder_dim=decoder_dim, vocab_size=vocab_size)
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1.")
        shares = dict(
            dropout=dropout,
            feature_dropout=feature_dropout,
            word_dropout=word_dropout,
            label_smoothing=label_smoothing,
        )
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name}={share} must be at least 0 and less than 1.")
        if doubly_stochastic_penalty < 0:
            raise ValueError(f"doubly_stochastic_penalty={doubly_stochastic_penalty} must not be negative.")

        self.encoder_name = encoder_name
        self.stride_in_1x1 = stride_in_1x1
        self.finetune_last_stages = finetune_last_stages
        self.embed_size = embed_size
        self.attention_dim = attention_dim
        self.encoder_dim = ENCODER_DIMS[encoder_name]
        self.decoder_dim = decoder_dim
        self.dropout = dropout
        self.feature_dropout = feature_dropout
        self.word_dropout = word_dropout
        self.vocab_size = vocab_size
        self.context_gate = context_gate
        self.deep_output = deep_output
        self.doubly_stochastic_penalty = doubly_stochastic_penalty
        self.label_smoothing = label_smoothing
        self.use_cache = kwargs.pop("use_cache", True)
        kwargs.setdefault("decoder_start_token_id", bos_token_id)
        kwargs.setdefault("is_encoder_decoder", True)
        kwargs.setdefault("tie_word_embeddings", False)
        # The saved folder names the classes and the pipeline that `trust_remote_code=True` loads from it.
        self.auto_map = kwargs.pop("auto_map", None) or {
            "AutoConfig": "configuration_showattend.ShowAttendConfig",
            "AutoModel": "modeling_showattend.ShowAttendForConditionalGeneration",
            "AutoModelForImageTextToText": "modeling_showattend.ShowAttendForConditionalGeneration",
        }
        self.custom_pipelines = kwargs.pop("custom_pipelines", None) or {
            "image-captioning": {
                "impl": "pipeline_showattend.ImageCaptioningPipeline",
                "pt": ["AutoModelForImageTextToText"],
                "type": "multimodal",
            }
        }
        kwargs |= {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        super().__init__(**kwargs)


ShowAttendConfig.register_for_auto_class()
