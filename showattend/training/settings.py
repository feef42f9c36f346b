"""All settings of a training run, and the command line and the preset files that they are read from."""

from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentTypeError
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, get_args

from showattend.command_line import CommandParser

PRESETS = Path(__file__).with_name("presets")


def _setting(default: Any, help: str, choices: Sequence[str] | None = None, least: int | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices, "least": least})


# The schedulers of transformers that need no settings of their own.
SCHEDULERS = (
    *("reduce_lr_on_plateau", "constant", "constant_with_warmup"),
    *("linear", "cosine", "polynomial", "inverse_sqrt"),
)
METRICS = ("loss", "token_accuracy", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider", "spice")


@dataclass
class TrainingSettings:
    """A training run. The defaults are the write-up's; a preset replaces them, and the command line replaces both."""

    dataset: str = field(metadata={"help": "Folder, file or Hub id; docs/data.md lists the layouts."})
    output_dir: str = field(metadata={"help": "Folder for checkpoints, the best model, logs and samples."})
    preset: str | None = _setting(None, "Name of a file in presets/ (original, tuned, ...), or a YAML file.")

    # Data
    image_column: str | None = _setting(None, "Column of the images, if it has none of the usual names.")
    caption_column: str | None = _setting(None, "Column of the captions, if it has none of the usual names.")
    max_train_samples: int | None = _setting(None, "Train on this many images only.", least=1)
    tokenizer: str = _setting("bert-base-uncased", "Hub id, folder, or vocab.txt of a BERT tokenizer.")
    prune_tokenizer: bool = _setting(False, "Keep only the tokens that the training captions use.")
    keep_final_stop: bool = _setting(True, "Keep the full stop that ends a caption.")
    generated_captions: int = _setting(
        0,
        "Also train on this many captions per image that --init-from generates: those closest to the image's own.",
        least=0,
    )
    max_length: int = _setting(30, "Tokens of a caption, including [CLS] and [SEP]; longer captions are cut.")
    flip: bool = _setting(False, "Mirror each image half the time.")
    min_crop: float = _setting(
        1.0,
        "Least side of a random crop, as a share of the whole; of frozen stages' maps, or of images without a cache.",
    )
    feature_cache: str = _setting(
        "disk",
        "Where to keep the frozen encoder's features. none: encode images in every step, decoded by --num-workers.",
        choices=("disk", "none"),
    )
    streaming_steps: int | None = _setting(
        None, "Train on the dataset while reading it, in epochs of this many steps; with --feature-cache none.", least=1
    )
    cache_dir: str = _setting("~/.cache/showattend", "Folder for the features of the frozen encoder.")

    # Model
    init_from: str | None = _setting(None, "Start from this captioner (a folder or Hub id), with its tokenizer.")
    encoder: str | None = _setting(
        None, "Pretrained vision model of transformers or timm, instead of a torchvision ResNet: a folder or Hub id."
    )
    encoder_name: str = _setting("resnet50", "torchvision ResNet: resnet18, 34, 50, 101 or 152.")
    encoder_weights: str = _setting("IMAGENET1K_V1", "Name of torchvision weights, or a file with a state dict.")
    stride_in_1x1: bool = _setting(
        False, "The weights are the original ResNet's, which strides in the first 1x1 convolution."
    )
    finetune_last_stages: int = _setting(0, "Train this many of the encoder's last stages.")
    freeze_epochs: int = _setting(0, "Freeze those stages for this many epochs.", least=0)
    embed_size: int = _setting(300, "Length of a token's embedding.")
    attention_dim: int = _setting(256, "Units of the attention's hidden layer.")
    decoder_dim: int = _setting(512, "Units of the LSTM.")
    dropout: float = _setting(0.5, "Dropout before the output layer.")
    feature_dropout: float = _setting(0.0, "Dropout of the channels of an image's grid.")
    word_dropout: float = _setting(0.0, "Share of the decoder's input tokens whose embeddings are zeroed.")
    context_gate: bool = _setting(False, "Gate the context vector (section 4.2.1 of the paper).")
    deep_output: bool = _setting(False, "Predict from state, context and previous token (equation 7 of the paper).")
    attention_type: str | None = _setting(
        None,
        "hard: look at one position per step in training (section 4.1 of the paper); default: --init-from's, or soft.",
        choices=("soft", "hard"),
    )
    doubly_stochastic_penalty: float = _setting(0.0, "Weight of the attention penalty (equation 14 of the paper).")
    label_smoothing: float = _setting(0.0, "Share of the target probability spread over the vocabulary.")

    # Optimisation
    objective: str = _setting(
        "cross_entropy",
        "cross_entropy, or self_critical: reward sampled captions by CIDEr-D (with --init-from).",
        choices=("cross_entropy", "self_critical"),
    )
    samples_per_image: int = _setting(5, "Captions that self-critical training samples per image.", least=1)
    meteor_weight: float = _setting(0.0, "Weight of METEOR with exact matches, added to the CIDEr-D reward.", least=0)
    baseline: str = _setting(
        "greedy",
        "What a sample's reward is compared with: the greedy caption's, or the mean of the other samples'.",
        choices=("greedy", "samples"),
    )
    epochs: int = _setting(100, "Passes over the training captions.", least=1)
    batch_size: int = _setting(32, "Captions in a forward pass of one process.", least=1)
    gradient_accumulation_steps: int = _setting(1, "Forward passes of one process before an optimizer step.", least=1)
    captions_per_image: int = _setting(1, "Captions of an image in one batch; 5 save work in the encoder.", least=1)
    learning_rate: float = _setting(3e-4, "Adam's learning rate for the decoder.", least=0)
    encoder_learning_rate: float = _setting(1e-4, "Adam's learning rate for the encoder's trained stages.", least=0)
    lr_scheduler: str = _setting("reduce_lr_on_plateau", "A scheduler of transformers.", choices=SCHEDULERS)
    plateau_factor: float = _setting(0.1, "reduce_lr_on_plateau: the learning rate is multiplied by this ...")
    plateau_patience: int = _setting(5, "... after this many epochs without a lower validation loss.", least=0)
    warmup_steps: int = _setting(
        0,
        "Optimizer steps in which the learning rate rises from 0 (not with reduce_lr_on_plateau or constant).",
        least=0,
    )
    weight_decay: float = _setting(0.0, "AdamW's weight decay (0: Adam).", least=0)
    ema_decay: float = _setting(0.0, "Validate and keep a moving average of the weights with this decay (0: off).")
    average_with_start: float = _setting(
        0.0, "Validate and keep an average with the weights of --init-from, which have this share (0: off)."
    )
    average_with: str | None = _setting(
        None,
        "Average the result with this earlier captioner too, from which --init-from was trained (folder or Hub id).",
    )
    average_with_share: float = _setting(0.25, "The share of the weights of --average-with.")
    max_grad_norm: float = _setting(0.0, "Clip the gradient to this norm (0: off).", least=0)
    mixed_precision: str | None = _setting(None, "Default: accelerate's configuration.", choices=("no", "fp16", "bf16"))
    seed: int = _setting(42, "Seeds the initial weights, the order of the captions and dropout.")
    num_workers: int = _setting(0, "Processes that prefetch features or images.", least=0)

    # Validation, checkpoints, logs
    metric_for_best_model: str = _setting(
        "loss", "The validation metric that decides which epoch is best.", choices=METRICS
    )
    early_stopping_patience: int | None = _setting(
        None, "Stop after this many epochs without a better metric.", least=1
    )
    validation_num_beams: int = _setting(1, "Beams of the captions that are scored after each epoch.", least=1)
    checkpoint_every: int = _setting(500, "Optimizer steps from one checkpoint to the next.", least=1)
    report_to: str = _setting("tensorboard", "accelerate's tracker: tensorboard, wandb, trackio, ... or none.")

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, least = getattr(self, setting.name), setting.metadata.get("least")
            if None not in (value, least) and not value >= least:  # so that NaN fails as well
                raise ValueError(f"`{setting.name}` must be at least {least}, not {value}.")
        if not 0 < self.plateau_factor < 1:
            raise ValueError(f"`plateau_factor` must be between 0 and 1, not {self.plateau_factor}.")
        if self.warmup_steps and self.lr_scheduler in ("reduce_lr_on_plateau", "constant"):
            raise ValueError(f"`lr_scheduler` {self.lr_scheduler} has no warm-up: leave `warmup_steps` at 0.")
        for name in ("ema_decay", "average_with_start", "average_with_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and less than 1, not {getattr(self, name)}.")
        if not 0 < self.min_crop <= 1:
            raise ValueError(f"`min_crop` must be above 0 and at most 1, not {self.min_crop}.")
        if self.min_crop < 1 and not self.finetune_last_stages and self.feature_cache == "disk":
            raise ValueError("`min_crop` needs `finetune_last_stages`: the grid of a frozen encoder is not cropped.")
        of_a_resnet = ("encoder_name", "encoder_weights", "stride_in_1x1")
        for encoder, others in (("encoder", ("init_from", *of_a_resnet)), ("init_from", of_a_resnet)):
            for name in others:
                if getattr(self, encoder) is not None and getattr(self, name) != getattr(TrainingSettings, name):
                    raise ValueError(f"`{encoder}` and `{name}` name two encoders: leave one out.")
        if self.max_length < 3:
            raise ValueError(f"`max_length` must be at least 3 ([CLS], a token and [SEP]), not {self.max_length}.")
        if self.objective == "self_critical" and self.init_from is None:
            raise ValueError("`objective` self_critical is a second phase: name its start with `init_from`.")
        for name in ("average_with_start", "average_with", "generated_captions"):
            if getattr(self, name) and self.init_from is None:
                raise ValueError(f"`{name}` needs a start: name it with `init_from`.")
        if self.objective == "self_critical" and self.generated_captions:
            raise ValueError("`generated_captions` needs `objective` cross_entropy.")
        if self.streaming_steps:
            self._check_streaming()
        if self.baseline == "samples" and self.samples_per_image < 2:
            raise ValueError("`baseline` samples needs `samples_per_image` of at least 2.")

    def _check_streaming(self) -> None:
        if self.feature_cache != "none":
            raise ValueError("`streaming_steps` needs `feature_cache` none: a stream is not cached.")
        if self.num_workers > 1:
            raise ValueError(f"`streaming_steps` has one reader: `num_workers` must be 0 or 1, not {self.num_workers}.")
        for name in ("max_train_samples", "prune_tokenizer", "generated_captions"):
            if getattr(self, name):
                raise ValueError(f"`{name}` needs all training captions, which `streaming_steps` does not load.")
        if self.objective == "self_critical":
            raise ValueError("`objective` self_critical needs all training captions: leave `streaming_steps` out.")


def parse_settings(arguments: Sequence[str] | None, presets: Path = PRESETS) -> TrainingSettings:
    """Read a command line, by default this process's; `--preset NAME` is NAME.yaml in the folder `presets`.

    Raises:
        ValueError: If an argument or a preset's setting is unknown, missing or of the wrong type.
    """
    parser = settings_parser()
    preset_parser = _Parser("train", "", add_help=False, allow_abbrev=False)
    preset_parser.add_argument("--preset")
    preset = preset_parser.parse_known_args(arguments)[0].preset
    if preset is not None:
        is_file = Path(preset).suffix in (".yaml", ".yml")
        _set_defaults(parser, Path(preset) if is_file else presets / f"{preset}.yaml")
    values, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise ValueError(f"unknown arguments: {' '.join(unknown)}")
    try:
        return TrainingSettings(**vars(values))
    except ValueError as error:
        raise ValueError(parser.with_flags(str(error))) from error


class _Parser(CommandParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


class _Formatter(ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def settings_parser() -> CommandParser:
    """A parser with an option for each setting, like transformers' HfArgumentParser, which takes seconds to import."""
    parser = _Parser("train", "Train a captioner.", formatter_class=_Formatter, allow_abbrev=False)
    for setting in fields(TrainingSettings):
        name = setting.name.replace("_", "-")
        kind = (get_args(setting.type) or (setting.type,))[0]  # of `int | None`: int
        options: dict[str, Any] = {"type": _truth, "nargs": "?", "const": True} if kind is bool else {"type": kind}
        required = setting.default is MISSING
        default = None if required else setting.default
        options |= {"help": setting.metadata["help"], "choices": setting.metadata.get("choices")}
        parser.add_argument(f"--{name}", default=default, required=required, **options)
        if setting.default is True:
            parser.add_argument(f"--no-{name}", dest=setting.name, action="store_false", help=f"--{name} false")
    return parser


def _truth(text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise ArgumentTypeError(f"{text!r} is neither true nor false")
    return words[text.lower()]


def _set_defaults(parser: CommandParser, path: Path) -> None:
    """Make a preset's settings the parser's defaults."""
    values = _read_preset(path)
    known = set()
    for action in parser._actions:
        if action.dest in values:
            # As a string, which argparse parses like an argument, but without checking its choices.
            action.default = str(values[action.dest])
            action.required = False
            known.add(action.dest)
            if action.choices and action.default not in action.choices:
                raise ValueError(f"{path}: argument {action.dest}: invalid choice: {action.default!r}.")
    if unknown := values.keys() - known:
        raise ValueError(f"{path} holds unknown settings: {', '.join(sorted(unknown))}.")
    try:
        parser.parse_known_args(["--dataset=d", "--output-dir=o"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from error


def _read_preset(path: Path) -> dict[str, Any]:
    """A preset's settings, on top of those of its `base`, a file in the same folder."""
    import yaml

    if not path.is_file():
        beside, ours = (sorted(folder.glob("*.yaml")) for folder in (path.parent, PRESETS))
        known = ", ".join(file.stem for file in beside or ours)
        raise ValueError(f"There is no preset {path}: name one of {known}, or a YAML file.")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold lines like `batch_size: 32`, not a {type(values).__name__}.")
    base = values.pop("base", None)
    inherited = {} if base is None else _read_preset(path.with_name(str(base)))
    return inherited | {str(name): value for name, value in values.items() if value is not None}
