"""Show, Attend and Tell (Xu et al., 2015, https://arxiv.org/abs/1502.03044) as a transformers model.

In the order of the data: an encoder turns an image into a grid of features, additive attention reads the grid before
every token, and an LSTM cell generates the caption token by token. The submodules carry the names of the write-up that
this project follows (`U`, `W`, `A`, `init_h`, `lstm_cell`, `fcn`), so its checkpoints fit key by key.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from transformers import (
    MODEL_FOR_BACKBONE_MAPPING,
    MODEL_MAPPING,
    AutoBackbone,
    AutoModel,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.utils import can_return_tuple, has_file

from .configuration_showattend import ShowAttendConfig
from .deferred_linear_showattend import is_plain, product_dtype, recurrent_linear

if TYPE_CHECKING:
    # Never executed: transformers saves the files that this one imports, and so the pipeline's as well.
    from .pipeline_showattend import ImageCaptioningPipeline  # noqa: F401

# Hard attention in training. The numbers are those of the paper's authors (section 4.1 and their code).
EXPECTED_SHARE = 0.5  # of images whose captions read the expected context
ENTROPY_WEIGHT = 0.002
BASELINE_DECAY = 0.9


class ShowAttendEncoder(nn.Module):
    """Images in, a grid of features out: a torchvision ResNet up to its last stage, or the model of `backbone_config`.

    Raises:
        ValueError: If `backbone_config` is of a model without feature maps, or has other channels than `encoder_dim` or
            fewer stages than `finetune_last_stages`.
    """

    main_input_name = "pixel_values"

    def __init__(self, config: ShowAttendConfig) -> None:
        super().__init__()
        self.config = config
        if config.backbone_config is None:
            self.resnet = _resnet(config)
        else:
            self.backbone = make_backbone(config.backbone_config)
            channels = channels_of(self.backbone)
            if config.encoder_dim not in (None, channels):
                raise ValueError(
                    f"encoder_dim={config.encoder_dim} does not fit backbone_config, whose features have {channels} "
                    "channels: leave encoder_dim out."
                )
            config.encoder_dim = channels
            self._grid_shapes: dict[tuple[int, int], tuple[int, int]] = {}
        self.train(self.training)

    @property
    def frozen(self) -> nn.Module:
        """The layers before the trained stages.

        Raises:
            ValueError: If these are stages of a `backbone_config`, which runs as a whole.
        """
        stages = self.config.finetune_last_stages
        if self.config.backbone_config is None:
            return self.resnet[: len(self.resnet) - stages]
        if stages:
            raise ValueError(
                f"`finetune_last_stages` {stages} needs `feature_cache` none: this encoder cannot be split before its "
                "trained stages, and training them changes all the features that it returns."
            )
        return self.backbone

    @property
    def finetuned(self) -> nn.Sequential | nn.ModuleList:
        """The trained stages."""
        number = self.config.finetune_last_stages
        if self.config.backbone_config is None:
            return self.resnet[len(self.resnet) - number :]
        stages = stages_of(self.backbone) if number else nn.ModuleList()
        if number > len(stages):
            raise ValueError(f"finetune_last_stages={number} is more than the encoder's {len(stages)} stages.")
        return stages[len(stages) - number :]

    def train(self, mode: bool = True) -> "ShowAttendEncoder":
        """Set the mode and freeze the frozen stages; `from_pretrained` would undo a freeze made in `__init__`.

        Frozen stages stay in eval mode, without dropout. BatchNorm always normalises with its stored statistics, even
        in the stages that are trained. Whether those require gradients is left as it is: a caller may freeze them too.
        """
        super().train(False)
        self.training = mode
        finetuned = self.finetuned.train(mode)
        trained = set(finetuned.parameters())
        for parameter in self.parameters():
            if parameter not in trained:
                parameter.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = False
        return self

    def frozen_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Compute the frozen layers' output. Training never changes it, so it can be cached as `image_features`.

        Args:
            pixel_values: (batch, 3, height, width), normalised by the image processor.

        Returns:
            The grid (batch, positions, encoder_dim) if the whole encoder is frozen, else the output of the last
            frozen stage (batch, channels, height, width).

        Raises:
            ValueError: If stages of a `backbone_config` are trained.
        """
        frozen = self.frozen
        if self.config.backbone_config is not None:
            return _to_grid(self._backbone_map(pixel_values))
        maps = frozen(_channels_last(pixel_values))
        return maps if self.config.finetune_last_stages else _to_grid(maps)

    def forward(
        self, pixel_values: torch.Tensor | None = None, image_features: torch.Tensor | None = None, **_: Any
    ) -> BaseModelOutput:
        """Encode images, or pass the features of [`frozen_features`] through the remaining stages.

        Args:
            pixel_values: (batch, 3, height, width).
            image_features: (batch, positions, encoder_dim), returned unchanged; or the output of the last frozen
                stage (batch, channels, height, width), which goes through the fine-tuned ones.

        Returns:
            BaseModelOutput whose `last_hidden_state` is (batch, positions, encoder_dim), the grid row by row.
        """
        _check_one_given(pixel_values, image_features)
        dtype = next(self.parameters()).dtype
        if pixel_values is not None:
            if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
                raise ValueError(f"pixel_values must be (batch, 3, height, width), not {tuple(pixel_values.shape)}.")
            if self.config.backbone_config is None:
                image_features = self.frozen_features(pixel_values.to(dtype))
            else:
                image_features = _to_grid(self._backbone_map(pixel_values.to(dtype)))
        assert image_features is not None
        if image_features.ndim == 4 and self.config.backbone_config is None:
            # Feature maps come from training, where convolutions are faster with channels last.
            weights = next(self.parameters())
            maps = image_features.to(product_dtype(weights)).contiguous(memory_format=torch.channels_last)
            image_features = _to_grid(self.finetuned(maps))
        if image_features.ndim != 3 or image_features.shape[-1] != self.config.encoder_dim:
            raise ValueError(
                f"image_features must be (batch, positions, {self.config.encoder_dim}), "
                f"not {tuple(image_features.shape)}."
            )
        return BaseModelOutput(last_hidden_state=image_features)

    def _backbone_map(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = last_feature_map(self.backbone, _channels_last(pixel_values))
        if features.ndim != 4 or features.shape[1] != self.config.encoder_dim:
            shape, kind = tuple(features.shape), self.backbone.config.model_type
            raise ValueError(
                f"The {kind} encoder must give maps (batch, {self.config.encoder_dim}, rows, columns), not {shape}."
            )
        return features

    def grid_shape(self, height: int, width: int) -> tuple[int, int]:
        """The rows and columns of the grid for images of a size in pixels.

        Raises:
            ValueError: If the encoder does not take images of this size.
        """
        if self.config.backbone_config is None:
            return -(-height // 32), -(-width // 32)  # every ResNet halves its input five times
        if (height, width) not in self._grid_shapes:
            weights = next(self.parameters())
            with torch.no_grad():
                try:
                    features = self._backbone_map(weights.new_zeros(1, 3, height, width))
                except (ValueError, RuntimeError, TypeError, AssertionError) as error:  # the last is timm's
                    raise ValueError(f"The encoder does not take images of {height}x{width} pixels: {error}") from error
            self._grid_shapes[height, width] = features.shape[2], features.shape[3]
        return self._grid_shapes[height, width]


def _resnet(config: ShowAttendConfig) -> nn.Sequential:
    assert config.encoder_name is not None
    resnet = torchvision.models.get_model(config.encoder_name, weights=None)
    if config.stride_in_1x1:
        for stage in (resnet.layer2, resnet.layer3, resnet.layer4):
            if isinstance(stage[0], torchvision.models.resnet.Bottleneck):
                stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    # conv1, bn1, relu, maxpool, then the four stages
    return nn.Sequential(*list(resnet.children())[:-2])


def _channels_last(pixel_values: torch.Tensor) -> torch.Tensor:
    """On a CPU, channels-last is faster for a batch and slower for a single image."""
    if pixel_values.device.type == "cpu" and pixel_values.shape[0] > 1:
        return pixel_values.contiguous(memory_format=torch.channels_last)
    return pixel_values


def _check_one_given(*images: Any) -> None:
    if sum(given is not None for given in images) != 1:
        raise ValueError("Pass exactly one of pixel_values, image_features and encoder_outputs.")


def _to_grid(maps: torch.Tensor) -> torch.Tensor:
    return maps.flatten(2).transpose(1, 2)  # (batch, channels, height, width) -> (batch, height * width, channels)


class ShowAttendAttention(nn.Module):
    """Additive attention (Bahdanau et al., 2015, https://arxiv.org/abs/1409.0473) over the grid."""

    def __init__(self, config: ShowAttendConfig) -> None:
        super().__init__()
        self.config = config
        self.W = nn.Linear(config.decoder_dim, config.attention_dim)
        self.U = nn.Linear(config.encoder_dim, config.attention_dim)
        self.A = nn.Linear(config.attention_dim, 1)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, drawn: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Attend to each image, once for each of its captions.

        Args:
            query: W(h), (captions, attention_dim), grouped by image; every image has the same number of captions.
            key: U(features), (images, positions, attention_dim).
            value: The vectors to sum, (images, positions, channels).
            drawn: For hard attention in training: bool (images,), whether an image's captions look at a drawn position
                or read the expected context.

        Returns:
            The context (captions, channels), the weights (captions, positions), and, if `drawn` is given, the drawn
            positions as one-hot rows (captions, positions).
        """
        images, positions, _ = value.shape
        query = query.view(images, -1, 1, query.shape[-1])  # (images, captions per image, 1, attention_dim)
        scores = self.A(torch.tanh(key.unsqueeze(1) + query)).squeeze(-1)  # (images, captions per image, positions)
        weights = scores.softmax(dim=-1)
        applied, choice = weights, None
        if drawn is not None:
            position = torch.multinomial(weights.detach().float().flatten(0, 1), 1).view(*weights.shape[:2], 1)
            drawn = drawn.view(-1, 1, 1)
            choice = torch.zeros_like(weights).scatter(-1, position, 1) * drawn
            applied = torch.where(drawn, choice, weights)
        elif self.config.likeliest_position and not self.training:
            applied = torch.zeros_like(weights).scatter(-1, weights.argmax(dim=-1, keepdim=True), 1)
        context = applied.to(value.dtype) @ value  # (images, captions per image, channels)
        choice = None if choice is None else choice.reshape(-1, positions)
        return context.flatten(0, 1), weights.reshape(-1, positions), choice


class ImageMemory(NamedTuple):
    """What the decoder computes once per image and reads at every step; an image's captions share it."""

    key: torch.Tensor  # U(features), (images, positions, attention_dim)
    value: torch.Tensor  # the features, (images, positions, encoder_dim), or `project(features)`
    projected: bool  # whether `value` is projected
    drawn: torch.Tensor | None = None  # (images,), see [`ShowAttendAttention`]


State = tuple[torch.Tensor, torch.Tensor]  # h and c, (captions, decoder_dim) each


class ShowAttendDecoder(nn.Module):
    """An LSTM cell that reads the last token and the attended features, and predicts the next token.

    [`start`] computes what depends on the image alone; [`unroll`] runs the steps from there: all steps of a caption in
    one call in training, one step per call in generation and in an exported graph.
    """

    baseline: torch.Tensor  # hard attention's moving average of a token's log likelihood, 0 before the first batch

    def __init__(self, config: ShowAttendConfig) -> None:
        super().__init__()
        self.config = config
        self.attention = ShowAttendAttention(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embed_size)
        self.init_h = nn.Linear(config.encoder_dim, config.decoder_dim)
        self.init_c = nn.Linear(config.encoder_dim, config.decoder_dim)
        self.lstm_cell = nn.LSTMCell(config.embed_size + config.encoder_dim, config.decoder_dim)
        if config.context_gate:
            self.f_beta = nn.Linear(config.decoder_dim, 1)
        if config.deep_output:
            self.output_h = nn.Linear(config.decoder_dim, config.embed_size)
            self.output_z = nn.Linear(config.encoder_dim, config.embed_size, bias=False)
        self.fcn = nn.Linear(config.embed_size if config.deep_output else config.decoder_dim, config.vocab_size)
        self.drop = nn.Dropout(config.dropout)
        if config.attention_type == "hard":
            self.register_buffer("baseline", torch.zeros(()))

    def forward(
        self, features: torch.Tensor, input_ids: torch.Tensor, cache: "ShowAttendCache | None" = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Run the LSTM over `input_ids`, from the cache's state if it has one, and store the last state in the cache.

        Args:
            features: (images, positions, encoder_dim).
            input_ids: (captions, steps), where captions is a multiple of images.
            cache: Carries the memory and the state from one step of `generate` to the next.

        Returns:
            The output layer's input (captions, steps, units), the attention (captions, steps, positions), and, with
            hard attention in training, the drawn positions (captions, steps, positions).
        """
        images, captions = features.shape[0], input_ids.shape[0]  # len() would become a constant in an exported graph
        if images == 0 or captions % images:
            raise ValueError(f"{captions} captions cannot be shared out evenly among {images} images.")
        if cache is not None and cache.get_seq_length() > 0:
            memory, state = cache.memory, cache.state
            if (memory.key.shape[0], state[0].shape[0]) != (images, captions):
                raise ValueError(
                    f"The state is that of {state[0].shape[0]} captions of {memory.key.shape[0]} images, but "
                    f"{captions} captions of {images} images are given."
                )
        else:
            memory, state = self.start(features, captions // images, project=cache is not None)
        outputs, attentions, choices, state = self.unroll(input_ids, memory, state)
        if cache is not None:
            cache.remember(memory, state, input_ids.shape[1])
        return outputs, attentions, choices

    def start(self, features: torch.Tensor, captions: int = 1, project: bool = False) -> tuple[ImageMemory, State]:
        """Compute the memory of the images and the initial state of their captions.

        Args:
            features: (images, positions, encoder_dim).
            captions: The number of captions per image.
            project: [`project`] the features, which is faster when captions are generated token by token. Features stay
                unprojected if a module that takes part was replaced or hooked; the captions are the same.

        Returns:
            The memory, and h and c, each (images * captions, decoder_dim).
        """
        # Cast once: autocast would cast the features at every step.
        features = features.to(self._product_dtype())
        if self.training and self.config.feature_dropout:
            # Drop the same channels at every position: the model could memorise an image from any of them.
            features = features * F.dropout(torch.ones_like(features[:, :1]), self.config.feature_dropout)
        key = self.attention.U(features)  # (images, positions, attention_dim)
        project = project and is_plain(self.lstm_cell, nn.LSTMCell)
        project = project and (not self.config.deep_output or is_plain(self.output_z, nn.Linear))
        value = self.project(features) if project else features
        drawn = None
        if self.training and self.config.attention_type == "hard":
            drawn = torch.rand(features.shape[0], device=features.device) >= EXPECTED_SHARE
        mean = features.mean(dim=1).repeat_interleave(captions, dim=0)  # (images * captions, encoder_dim)
        return ImageMemory(key, value, project, drawn), (self.init_h(mean), self.init_c(mean))

    def unroll(
        self, input_ids: torch.Tensor, memory: ImageMemory, state: State
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, State]:
        """Run one step for each token.

        Args:
            input_ids: (captions, steps).
            memory: The images' memory from [`start`].
            state: h and c, each (captions, decoder_dim).

        Returns:
            The output layer's input (captions, steps, units), the attention (captions, steps, positions), the drawn
            positions (captions, steps, positions) if `memory.drawn` is given, and the state after the last step.
        """
        words = self.embedding(input_ids)  # (captions, steps, embed_size)
        if self.training and self.config.word_dropout:
            words = words * (torch.rand_like(words[..., :1]) >= self.config.word_dropout)
        cell: _SplitCell | _WholeCell
        if is_plain(self.lstm_cell, nn.LSTMCell):
            cell = _SplitCell(self.lstm_cell, self.config.embed_size, memory.projected)
        else:
            cell = _WholeCell(self.lstm_cell)
        query: Callable[[torch.Tensor], torch.Tensor] = self.attention.W
        if is_plain(self.attention.W, nn.Linear):
            query = recurrent_linear(self.attention.W.weight, self.attention.W.bias)

        states, contexts, attentions, choices = [], [], [], []
        for word in cell.read(words).unbind(dim=1):  # indexing would fill a gradient of all steps at every step
            state, context, attention, choice = self.step(word, memory, state, query, cell)
            states.append(state[0])
            contexts.append(context)
            attentions.append(attention)
            if choice is not None:
                choices.append(choice)

        outputs = torch.stack(states, dim=1)  # (captions, steps, decoder_dim)
        if self.config.deep_output:
            context = torch.stack(contexts, dim=1)
            context = context[..., 4 * self.config.decoder_dim :] if memory.projected else self.output_z(context)
            outputs = torch.tanh(words + self.output_h(self.drop(outputs)) + context)
        return outputs, torch.stack(attentions, dim=1), torch.stack(choices, dim=1) if choices else None, state

    def step(
        self,
        word: torch.Tensor,
        memory: ImageMemory,
        state: State,
        query: Callable[[torch.Tensor], torch.Tensor],
        cell: "_SplitCell | _WholeCell",
    ) -> tuple[State, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Attend to the image and read a token.

        Args:
            word: The token as the cell's `read` returns it, (captions, ...).
            query: The attention's W, as a function of h.
            cell: The LSTM cell.

        Returns:
            The new state, the context (captions, channels), the attention (captions, positions), and the drawn position
            (captions, positions) if `memory.drawn` is given.
        """
        context, attention, choice = self.attention(query(state[0]), memory.key, memory.value, memory.drawn)
        if self.config.context_gate:
            context = torch.sigmoid(self.f_beta(state[0])) * context
        return cell(word, context, state), context, attention, choice

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Project each position to its share of the gates and the output.

        Projections are linear, so the attended sum of projections equals the projection of the attended sum. Projecting
        once per image saves reading these large weights from memory at every generated token.

        Args:
            features: (images, positions, encoder_dim).

        Returns:
            Their share of the LSTM's gates and, with `deep_output`, of the output layer's input:
            (images, positions, 4 decoder_dim [+ embed_size]).
        """
        gates = F.linear(features, self.lstm_cell.weight_ih[:, self.config.embed_size :])
        return torch.cat([gates, self.output_z(features)], dim=-1) if self.config.deep_output else gates

    def _product_dtype(self) -> torch.dtype:
        weights = (weight for weight in self.parameters() if weight.is_floating_point())
        return product_dtype(next(weights))


class _SplitCell:
    """An LSTM cell as three products; the tokens' product does not depend on the state and covers all steps at once."""

    def __init__(self, cell: nn.LSTMCell, embed_size: int, projected: bool) -> None:
        whole = cell.weight_ih
        if torch.compiler.is_compiling():  # the ONNX export folds slices into two weights, but not a split
            self.word_weight, context_weight = whole[:, :embed_size], whole[:, embed_size:]
        else:  # a slice's gradient would be as large as the whole weight
            self.word_weight, context_weight = whole.split([embed_size, whole.shape[1] - embed_size], dim=1)
        self.bias = cell.bias_ih + cell.bias_hh
        self.gates_from_context = None if projected else recurrent_linear(context_weight)
        self.gates_from_state = recurrent_linear(cell.weight_hh)

    def read(self, words: torch.Tensor) -> torch.Tensor:
        """(captions, steps, embed_size) -> their share of the gates, (captions, steps, 4 decoder_dim)."""
        return F.linear(words, self.word_weight, self.bias)

    def __call__(self, word: torch.Tensor, context: torch.Tensor, state: State) -> State:
        h, c = state
        if self.gates_from_context is None:
            from_context = context[:, : word.shape[-1]]
        else:
            from_context = self.gates_from_context(context)
        gates = word + from_context + self.gates_from_state(h)  # (captions, 4 decoder_dim)
        i, f, g, o = gates.chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class _WholeCell:
    """An LSTM cell called as a module, so that replacements (LoRA, quantisation) and hooks take effect."""

    def __init__(self, cell: nn.Module) -> None:
        self.cell = cell

    def read(self, words: torch.Tensor) -> torch.Tensor:
        return words

    def __call__(self, word: torch.Tensor, context: torch.Tensor, state: State) -> State:
        h, c = self.cell(torch.cat([word, context], dim=-1), state)
        return h, c


# Everything that depends on transformers' internals (as of 5.4 to 5.24) follows here.


def make_backbone(config: Any) -> PreTrainedModel:
    """The vision model of a config, with random weights.

    `AutoBackbone` gives feature maps. CLIP's, SigLIP's and other plain vision transformers are not backbones in
    transformers, but their last hidden state holds a grid of patches.

    Raises:
        ValueError: If it is not a vision model, or has no feature maps.
    """
    is_backbone = type(config) in MODEL_FOR_BACKBONE_MAPPING
    if not is_backbone and not (type(config) in MODEL_MAPPING and hasattr(config, "patch_size")):
        raise ValueError(
            f"backbone_config is of {config.model_type!r}, which has no feature maps: take a backbone that "
            "transformers' AutoBackbone loads, or a vision transformer."
        )
    # Ignore the config's dtype, which may be that of the weights it came with.
    model = (AutoBackbone if is_backbone else AutoModel).from_config(config, dtype=torch.get_default_dtype())
    if model.main_input_name != "pixel_values":
        raise ValueError(
            f"backbone_config is of {config.model_type!r}, which reads {model.main_input_name}, not images."
        )
    if hasattr(model, "pooler"):
        model.pooler = None
    return model


def channels_of(backbone: Any) -> int:
    return backbone.channels[-1] if hasattr(backbone, "channels") else backbone.config.hidden_size


def stages_of(backbone: PreTrainedModel) -> nn.ModuleList | nn.Sequential:
    """A backbone's stages, or a vision transformer's layers.

    Raises:
        ValueError: If its class does not name them.
    """
    if backbone.config.model_type == "timm_backbone":  # its ResNets and ConvNeXts have no list of stages
        children = backbone._backbone.named_children()  # type: ignore[union-attr]
        if stages := [child for name, child in children if re.fullmatch(r"layer\d|stages_\d", name)]:
            return nn.ModuleList(stages)
    for name, module in backbone.named_modules():
        is_list = isinstance(module, nn.ModuleList | nn.Sequential)
        if is_list and name.rpartition(".")[2] in ("stages", "layers", "layer", "blocks"):
            return module
    raise ValueError(f"The stages of a {backbone.config.model_type} are unknown: finetune_last_stages must be 0.")


def last_feature_map(backbone: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """(batch, 3, height, width) -> (batch, channels, rows, columns)

    Raises:
        ValueError: If the images are of another size than a vision transformer's.
    """
    outputs = backbone(pixel_values)
    if "feature_maps" in outputs:
        return outputs.feature_maps[-1]
    patch = backbone.config.patch_size
    sides = zip(pixel_values.shape[-2:], patch if isinstance(patch, list | tuple) else (patch, patch), strict=True)
    rows, columns = (pixels // side for pixels, side in sides)
    patches = outputs.last_hidden_state[:, -rows * columns :]  # (batch, positions, channels) without class token
    return patches.transpose(1, 2).unflatten(2, (rows, columns))


# The state's name in `generate` and in outputs: `past_key_values` up to 5.23; later versions warn about it.
STATE = "cache" if "cache" in Seq2SeqLMOutput.__dataclass_fields__ else "past_key_values"


class LSTMState(CacheLayerMixin):
    """h and c under the names of transformers' caches (`keys`, `values`).

    So `Cache.reorder_cache` makes each state follow its beam.
    """

    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.reordered = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.steps

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.steps + query_length, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name up to 5.12

    def reset(self) -> None:
        super().reset()
        self.steps = 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self.reordered = True


class ShowAttendCache(Cache):
    """What `generate` carries from step to step: the LSTM's state and the images' memory."""

    memory: ImageMemory
    tokens_read: torch.Tensor | None = None  # (captions, steps); set by `generate` alone

    def __init__(self) -> None:
        self.lstm = LSTMState()
        super().__init__(layers=[self.lstm])

    @property
    def state(self) -> State:
        h, c = self.lstm.keys, self.lstm.values
        assert h is not None and c is not None, "the cache is empty"
        return h, c

    def remember(self, memory: ImageMemory, state: State, steps: int) -> None:
        self.update(*state, layer_idx=0)
        self.lstm.steps += steps
        self.memory = memory


class ShowAttendGenerationMixin(GenerationMixin):
    """Adapts `generate` to a model whose state is an LSTM's."""

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: torch.Tensor, encoder_outputs: Any = None, use_cache: bool | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        # Pass only what `forward` takes, and only the tokens that the state has not read: transformers would find them
        # by the attention mask, which an LSTM does not have.
        state = kwargs.get(STATE)
        if state is None:
            state = ShowAttendCache() if use_cache is not False else None
        steps = 0 if state is None else state.get_seq_length()
        if state is not None:
            state.tokens_read = input_ids
        return {
            "decoder_input_ids": input_ids[:, steps:],
            "encoder_outputs": encoder_outputs,
            "use_cache": use_cache,
            STATE: state,
        }

    def _expand_inputs_for_generation(  # type: ignore[override]
        self, expand_size: int = 1, is_encoder_decoder: bool = True, input_ids: Any = None, **model_kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        # Repeat the captions for beams and samples, not the images: the captions of an image share its memory.
        return input_ids.repeat_interleave(expand_size, dim=0), model_kwargs

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `prepare_inputs_for_generation` makes the cache


class ShowAttendPreTrainedModel(PreTrainedModel):
    config_class = ShowAttendConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    _no_split_modules = ["ShowAttendEncoder", "ShowAttendDecoder"]
    # Makes `generate` refuse assisted generation, which steps back after a wrong guess: an LSTM cannot.
    _is_stateful = True
    # Hard attention loads weights of soft attention, and vice versa.
    _keys_to_ignore_on_load_missing = [r"decoder\.baseline"]
    _keys_to_ignore_on_load_unexpected = [r"decoder\.baseline"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but only from safetensors: loading a pickle can run code.

        Raises:
            OSError: If there are no safetensors weights, or they could not be downloaded.
        """
        name = pretrained_model_name_or_path
        try:
            return super().from_pretrained(name, *args, **kwargs | {"use_safetensors": True})
        except OSError as error:
            found = {key: kwargs[key] for key in ("revision", "token", "cache_dir") if key in kwargs}
            folder = Path(kwargs.get("subfolder", ""))
            weights = [(folder / file).as_posix() for file in ("model.safetensors", "model.safetensors.index.json")]
            if error.__cause__ is not None and not isinstance(error.__cause__, OSError):
                reason = f"could not be downloaded ({error.__cause__}): try again"
            # The config has been read by now: of a repository on the Hub, it is in the cache.
            elif has_file(name, (folder / "config.json").as_posix(), local_files_only=True, **found) and not any(
                has_file(name, file, local_files_only=kwargs.get("local_files_only", False), **found)
                for file in weights
            ):
                reason = "has no model.safetensors, and other weights are not read, because a pickle can run code"
            else:
                raise
            raise OSError(f"{name} {reason}.") from error

    def _init_weights(self, module: nn.Module) -> None:
        # torch's own initialisation, as in the write-up. transformers guards torch's init functions, so loaded weights
        # stay; BatchNorm resets its statistics in place, past that guard, and is left to transformers.
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding | nn.LSTMCell):
            module.reset_parameters()
        elif isinstance(module, ShowAttendDecoder):
            if self.config.attention_type == "hard":
                nn.init.zeros_(module.baseline)
        else:
            super()._init_weights(module)


class ShowAttendForConditionalGeneration(ShowAttendPreTrainedModel, ShowAttendGenerationMixin):
    """The captioner: [`ShowAttendEncoder`] and [`ShowAttendDecoder`], with transformers' `generate`."""

    accepts_loss_kwargs = True  # so that Trainer passes `num_items_in_batch`

    def __init__(self, config: ShowAttendConfig) -> None:
        super().__init__(config)
        self.encoder = ShowAttendEncoder(config)
        self.decoder = ShowAttendDecoder(config)
        self.post_init()
        self.generation_config = GenerationConfig.from_model_config(config)
        self.generation_config.max_length = 30

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.decoder.embedding = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder.fcn

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.decoder.fcn = new_embeddings  # type: ignore[assignment]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[torch.Tensor, ...] | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: ShowAttendCache | None = None,
        cache: ShowAttendCache | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        skip_logits: bool | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Seq2SeqLMOutput:
        """Predict the next token after every token of `decoder_input_ids`.

        Args:
            pixel_values: (images, 3, height, width).
            image_features: Instead of `pixel_values`, features from [`ShowAttendEncoder.frozen_features`]:
                (images, positions, encoder_dim), or the maps of the last frozen stage.
            encoder_outputs: Or the encoder's output, whose first entry is (images, positions, encoder_dim).
            decoder_input_ids: (captions, steps), each starting with `[CLS]`; made from `labels` if absent. If
                there are several captions per image, they are grouped by image, in the order of the images.
            labels: (captions, steps), the tokens after `[CLS]`, the last of them `[SEP]`; -100 is ignored.
            past_key_values, cache: The state to continue from; transformers has two names for it.
            use_cache: Whether to return the state after the last step.
            num_items_in_batch: Divide the summed loss by this instead of by the number of labels in this call, so
                that the losses of micro-batches add up to the loss of the whole batch.
            skip_logits: Compute logits only at real labels, for the loss, and return none. By default True in training
                mode.
            attention_mask: Ignored: every position of an image is real.
            decoder_attention_mask: Padding after a caption needs no mask, as the LSTM reads from left to right. Padding
                before it is an error.
            output_attentions: Ignored: the attention is always returned.
            output_hidden_states: Ignored.

        Returns:
            Seq2SeqLMOutput with `loss` if there are labels, `logits` (captions, steps, vocab_size),
            `cross_attentions` (one tensor (captions, 1, steps, positions): one layer, one head), the state as
            `past_key_values` (`cache` from transformers 5.24 on), and `encoder_last_hidden_state` (images, positions,
            encoder_dim). The loss is the mean cross entropy of the labels. In training mode, label smoothing and the
            doubly stochastic penalty (equation 14 of the paper) are part of it; in eval mode it is the plain cross
            entropy.
        """
        _check_one_given(pixel_values, image_features, encoder_outputs)
        if encoder_outputs is None:
            encoder_outputs = self.encoder(pixel_values=pixel_values, image_features=image_features)
        features = encoder_outputs[0]
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("Pass decoder_input_ids or labels, or call generate to get a caption.")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None
        if decoder_attention_mask is not None and (decoder_attention_mask.diff(dim=1) > 0).any():
            raise ValueError("decoder_attention_mask masks tokens before unmasked ones: an LSTM cannot skip them.")
        state = cache if cache is not None else past_key_values
        if use_cache and state is None:
            state = ShowAttendCache()

        outputs, attentions, choices = self.decoder(features, decoder_input_ids, state)
        outputs = self.decoder.drop(outputs)

        if skip_logits is None:
            skip_logits = self.training
        loss, logits = None, None
        if labels is None or not skip_logits:
            logits = self.decoder.fcn(outputs)  # (captions, steps, vocab_size)
        if labels is not None:
            real = labels != -100  # (captions, steps)
            real_labels = labels[real]  # (labels,)
            if logits is not None:
                real_logits = logits[real]
            else:
                # On a CPU, oneDNN compiles a kernel for each number of rows that it has not seen yet: round it up.
                padding = -int(real.sum()) % 64
                real_logits = self.decoder.fcn(F.pad(outputs[real], (0, 0, 0, padding)))
                real_labels = F.pad(real_labels, (0, padding), value=-100)
            loss = self._loss(real_logits, real_labels, attentions, choices, real, num_items_in_batch)
        named_state: dict[str, Any] = {STATE: state if use_cache else None}
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            cross_attentions=(attentions.unsqueeze(1),),
            encoder_last_hidden_state=features,
            **named_state,
        )

    def _loss(
        self,
        logits: torch.Tensor,  # (labels, vocab_size)
        labels: torch.Tensor,  # (labels,), perhaps padded with -100
        attentions: torch.Tensor,  # (captions, steps, positions)
        choices: torch.Tensor | None,  # (captions, steps, positions)
        real: torch.Tensor,  # (captions, steps)
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        smoothing = self.config.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="sum")
        if self.training and self.config.doubly_stochastic_penalty:
            totals = (attentions.float() * real.unsqueeze(-1)).sum(dim=1)  # (captions, positions)
            totals = totals[real.any(dim=1)]  # rows without labels only pad the batch
            loss = loss + self.config.doubly_stochastic_penalty * (1 - totals).square().sum()
        if choices is not None:
            log_likelihoods = -F.cross_entropy(logits.detach().float(), labels, reduction="none")
            loss = loss - self._attention_gain(log_likelihoods, attentions.float(), choices, real)
        return loss / (num_items_in_batch if num_items_in_batch is not None else real.sum().clamp(min=1))

    def _attention_gain(
        self,
        log_likelihoods: torch.Tensor,  # (labels,)
        attentions: torch.Tensor,  # (captions, steps, positions)
        choices: torch.Tensor,  # (captions, steps, positions)
        real: torch.Tensor,  # (captions, steps)
    ) -> torch.Tensor:
        """The REINFORCE and entropy terms that train hard attention's weights (end of section 4.1 of the paper).

        Drawn positions become more likely if their caption's log likelihood exceeds the baseline, a moving average over
        earlier batches. The baseline is per token, because captions differ in length.
        """
        log_weights = attentions.clamp(min=1e-10).log()
        log_choices = ((choices * log_weights).sum(dim=-1) * real).sum(dim=1)  # (captions,), 0 if none was drawn
        rewards = torch.zeros_like(attentions[..., 0]).masked_scatter(real, log_likelihoods).sum(dim=1)  # (captions,)
        lengths = real.sum(dim=1)
        baseline = self.decoder.baseline
        drawn = choices.flatten(1).any(dim=1) & (lengths > 0)
        if drawn.any():
            mean = rewards[drawn].sum() / lengths[drawn].sum()
            earlier = torch.where(baseline == 0, mean, baseline)
            advantages = rewards - earlier * lengths
            baseline.copy_(BASELINE_DECAY * earlier + (1 - BASELINE_DECAY) * mean)
        else:
            advantages = torch.zeros_like(rewards)
        entropies = -(attentions * log_weights).sum(dim=-1) * real
        return (advantages.detach() * log_choices).sum() + ENTROPY_WEIGHT * entropies.sum()

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Shift right: `[CLS]` and all labels but the last, (captions, steps)."""
        start = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
        ids = torch.cat([start, labels[:, :-1]], dim=1)
        return ids.masked_fill(ids == -100, self.config.pad_token_id)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args: Any,
        image_features: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate`, from `pixel_values`, `image_features` or `encoder_outputs` (see [`forward`])."""
        pixel_values = kwargs.get("pixel_values")
        _check_one_given(inputs, pixel_values, image_features, encoder_outputs)
        encoded = None if encoder_outputs is None else encoder_outputs[0]
        (num_images,) = [len(x) for x in (inputs, pixel_values, image_features, encoded) if x is not None]
        if num_images == 0:
            raise ValueError("There is no image to caption: the batch is empty.")
        if image_features is not None:
            encoded = self.encoder(image_features=image_features)[0]
        if encoded is not None:
            kwargs["encoder_outputs"] = BaseModelOutput(last_hidden_state=encoded)
        prefix, mask = kwargs.get("decoder_input_ids"), kwargs.get("decoder_attention_mask")
        if prefix is not None and len(prefix) != num_images:
            raise ValueError(f"decoder_input_ids hold {len(prefix)} prefixes for {num_images} images: give one each.")
        is_padded = prefix is not None and bool((prefix == self.config.pad_token_id).any())
        if is_padded or (mask is not None and not mask.all()):
            raise ValueError(
                "decoder_input_ids hold padding, which an LSTM cannot skip: give prefixes of one length, or one image "
                "at a time."
            )
        states = [kwargs.pop(name, None) for name in ("cache", "past_key_values")]
        for state in states:
            if state is not None:
                _check_continues(state, prefix)
                kwargs[STATE] = state
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]


def _check_continues(state: ShowAttendCache, tokens: torch.Tensor | None) -> None:
    """Raise ValueError unless `tokens` are those that the state has read, followed by new ones."""
    steps = state.get_seq_length()
    if state.lstm.reordered:
        raise ValueError("The state of a beam search cannot be continued: its rows are not those of the captions.")
    if steps == 0:
        return
    if tokens is None or tokens.shape[1] <= steps:
        raise ValueError(f"decoder_input_ids must be the caption so far, longer than the {steps} tokens already read.")
    if state.tokens_read is not None and not torch.equal(state.tokens_read, tokens[:, :steps]):
        raise ValueError(f"decoder_input_ids do not begin with the {steps} tokens that the state has read.")


def generated_attentions(outputs: Any) -> torch.Tensor:
    """The attention before each generated token, for greedy search, sampling and the returned beams alike.

    Args:
        outputs: What `generate(..., return_dict_in_generate=True, output_attentions=True)` returned.

    Returns:
        (captions, generated tokens, positions). A row sums to one; rows after a caption's `[SEP]` are meaningless.
    """
    steps = [step[0][:, 0, -1] for step in outputs.cross_attentions]  # (beams, positions) each
    beams = getattr(outputs, "beam_indices", None)
    if beams is None:
        return torch.stack(steps, dim=1)
    # beam_indices[i, t] is the row whose prediction became token t of caption i (-1 after its end)
    return torch.stack([step[beams[:, t].clamp(min=0)] for t, step in enumerate(steps[: beams.shape[1]])], dim=1)


ShowAttendForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
