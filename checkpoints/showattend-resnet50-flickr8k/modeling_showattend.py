"""Show, Attend and Tell (Xu et al., 2015, https://arxiv.org/abs/1502.03044) as a transformers model.

In the order of the data: a ResNet turns a photo into a grid of features, additive attention looks at the grid before
every word, and an LSTM cell tells the caption one word piece at a time. The submodules carry the names of the
write-up that this project follows (`U`, `W`, `A`, `init_h`, `lstm_cell`, `fcn`), so its checkpoints fit key by key.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.utils import can_return_tuple

from .configuration_showattend import ShowAttendConfig
from .deferred_linear_showattend import product_dtype, recurrent_linear

if TYPE_CHECKING:
    # Not run: transformers copies the files that this one names in an import, so the pipeline's travels along.
    from .pipeline_showattend import ImageCaptioningPipeline  # noqa: F401


class ShowAttendEncoder(nn.Module):
    """A torchvision ResNet without its pooling and classifier: photos in, a grid of features out."""

    main_input_name = "pixel_values"

    def __init__(self, config: ShowAttendConfig) -> None:
        super().__init__()
        self.config = config
        resnet = torchvision.models.get_model(config.encoder_name, weights=None)
        if config.stride_in_1x1:
            for stage in (resnet.layer2, resnet.layer3, resnet.layer4):
                if isinstance(stage[0], torchvision.models.resnet.Bottleneck):
                    stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        # conv1, bn1, relu, maxpool, then the four stages
        self.resnet = nn.Sequential(*list(resnet.children())[:-2])
        self.train(self.training)

    @property
    def frozen(self) -> nn.Sequential:
        return self.resnet[: len(self.resnet) - self.config.finetune_last_stages]

    @property
    def finetuned(self) -> nn.Sequential:
        return self.resnet[len(self.resnet) - self.config.finetune_last_stages :]

    def train(self, mode: bool = True) -> "ShowAttendEncoder":
        """Freeze what is frozen. Here and not in `__init__`, since `from_pretrained` undoes a freeze made there.

        BatchNorm normalises with ImageNet's statistics, also while the decoder or the last stages train.
        """
        super().train(mode)
        self.frozen.requires_grad_(False)
        self.finetuned.requires_grad_(True)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = False
        return self

    def frozen_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The part of the work that training never changes, so that it can be kept: valid as `image_features`.

        Args:
            pixel_values: (batch, 3, height, width), normalised as the image processor does it.

        Returns:
            The grid (batch, positions, encoder_dim) if the whole encoder is frozen, else the output of the last
            frozen stage (batch, channels, height, width).
        """
        if pixel_values.device.type == "cpu" and pixel_values.shape[0] > 1:
            # A CPU encodes several photos faster with the channels last, and a single one slower.
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        maps = self.frozen(pixel_values)
        return maps if self.config.finetune_last_stages else _to_grid(maps)

    def forward(
        self, pixel_values: torch.Tensor | None = None, image_features: torch.Tensor | None = None, **_: Any
    ) -> BaseModelOutput:
        """Encode photos, or finish what [`frozen_features`] began.

        Args:
            pixel_values: (batch, 3, height, width).
            image_features: (batch, positions, encoder_dim), taken as they are, or (batch, channels, height, width),
                the output of the last frozen stage, which then goes through the fine-tuned ones.

        Returns:
            BaseModelOutput whose `last_hidden_state` is (batch, positions, encoder_dim), the grid row by row.
        """
        _check_one_given(pixel_values, image_features)
        dtype = next(self.parameters()).dtype
        if pixel_values is not None:
            if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
                raise ValueError(f"pixel_values must be (batch, 3, height, width), not {tuple(pixel_values.shape)}.")
            image_features = self.frozen_features(pixel_values.to(dtype))
        assert image_features is not None
        if image_features.ndim == 4:
            # Batches of maps come from training, whose convolutions are faster with the channels last.
            maps = image_features.to(dtype).contiguous(memory_format=torch.channels_last)
            image_features = _to_grid(self.finetuned(maps))
        if image_features.ndim != 3 or image_features.shape[-1] != self.config.encoder_dim:
            raise ValueError(
                f"image_features must be (batch, positions, {self.config.encoder_dim}), "
                f"not {tuple(image_features.shape)}."
            )
        return BaseModelOutput(last_hidden_state=image_features)


def _check_one_given(*photos: Any) -> None:
    if sum(given is not None for given in photos) != 1:
        raise ValueError("Pass exactly one of pixel_values, image_features and encoder_outputs.")


def _to_grid(maps: torch.Tensor) -> torch.Tensor:
    return maps.flatten(2).transpose(1, 2)  # (batch, channels, height, width) -> (batch, height * width, channels)


class ShowAttendAttention(nn.Module):
    """Additive attention (Bahdanau et al., 2015, https://arxiv.org/abs/1409.0473) over the grid."""

    def __init__(self, config: ShowAttendConfig) -> None:
        super().__init__()
        self.W = nn.Linear(config.decoder_dim, config.attention_dim)
        self.U = nn.Linear(config.encoder_dim, config.attention_dim)
        self.A = nn.Linear(config.attention_dim, 1)

    def forward(
        self, values: torch.Tensor, keys: torch.Tensor, query: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Look at every photo once for each of its captions.

        Args:
            values: The features, (images, positions, encoder_dim), or what is to be made of them, projected.
            keys: U(features), (images, positions, attention_dim): the same at every step, so computed once.
            query: W(h), (captions, attention_dim). An image's captions stand together, equally many for each.

        Returns:
            The context (captions, encoder_dim), likewise, and the weights that made it, (captions, positions).
        """
        images, positions, _ = values.shape
        query = query.view(images, -1, 1, query.shape[-1])  # (images, captions of each, 1, attention_dim)
        scores = self.A(torch.tanh(keys.unsqueeze(1) + query)).squeeze(-1)  # (images, captions of each, positions)
        weights = scores.softmax(dim=-1)
        context = weights.to(values.dtype) @ values  # (images, captions of each, encoder_dim)
        return context.flatten(0, 1), weights.reshape(-1, positions)


class ShowAttendDecoder(nn.Module):
    """An LSTM cell that reads the last word piece and the attended features, and predicts the next piece."""

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

    def forward(
        self, features: torch.Tensor, input_ids: torch.Tensor, cache: "ShowAttendCache | None" = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the LSTM over `input_ids`, from the cache's state if it has one, and leave the last state there.

        Args:
            features: (images, positions, encoder_dim).
            input_ids: (captions, steps), where captions is a multiple of images.
            cache: Holds h, c, U(features) and [`projected`] features from one call of `generate`'s loop to the next.

        Returns:
            What the output layer reads, (captions, steps, units), and the attention, (captions, steps, positions).
        """
        # Autocast would cast the features again at every step.
        features = features.to(product_dtype(self.fcn.weight))
        captions, steps = input_ids.shape
        if captions % features.shape[0]:  # not len(), which would fix their number in an exported graph
            raise ValueError(f"{captions} captions cannot be shared out evenly among {len(features)} images.")
        if self.training and self.config.feature_dropout:
            # A photo loses the same channels at every position: its grid as a whole is what could be learnt by heart.
            features = features * F.dropout(torch.ones_like(features[:, :1]), self.config.feature_dropout)
        if cache is not None and cache.get_seq_length() > 0:
            keys, values, h, c = cache.attention_keys, cache.attention_values, *cache.state
        else:
            keys = self.attention.U(features)  # (images, positions, attention_dim)
            values = features if cache is None else self.projected(features)
            mean = features.mean(dim=1).repeat_interleave(captions // len(features), dim=0)
            h, c = self.init_h(mean), self.init_c(mean)  # (captions, decoder_dim) each

        # The gates' share of the words does not wait for the state: one product for all steps.
        words = self.embedding(input_ids)  # (captions, steps, embed_size)
        if self.training and self.config.word_dropout:
            words = words * (torch.rand_like(words[..., :1]) >= self.config.word_dropout)
        word_weight, context_weight = self._input_weights()
        word_gates = F.linear(words, word_weight, self.lstm_cell.bias_ih + self.lstm_cell.bias_hh)
        to_query = recurrent_linear(self.attention.W.weight, self.attention.W.bias)
        gates_from_state = recurrent_linear(self.lstm_cell.weight_hh)
        gates_from_context = recurrent_linear(context_weight)

        states, contexts, attentions = [], [], []
        for step in range(steps):
            context, attention = self.attention(values, keys, to_query(h))
            if self.config.context_gate:
                context = torch.sigmoid(self.f_beta(h)) * context
            context_gates = gates_from_context(context) if cache is None else context[:, : len(context_weight)]
            gates = word_gates[:, step] + context_gates + gates_from_state(h)  # (captions, 4 units)
            write, keep, value, read = gates.chunk(4, dim=1)
            c = torch.sigmoid(keep) * c + torch.sigmoid(write) * torch.tanh(value)
            h = torch.sigmoid(read) * torch.tanh(c)
            states.append(h)
            contexts.append(context)
            attentions.append(attention)
        if cache is not None:
            cache.remember(h, c, keys, values, steps)

        outputs = torch.stack(states, dim=1)  # (captions, steps, decoder_dim)
        if self.config.deep_output:
            context = torch.stack(contexts, dim=1)
            context = self.output_z(context) if cache is None else context[..., len(context_weight) :]
            outputs = torch.tanh(words + self.output_h(self.drop(outputs)) + context)
        return outputs, torch.stack(attentions, dim=1)

    def projected(self, features: torch.Tensor) -> torch.Tensor:
        """What the decoder makes of each position: attention's sum of these is the same made of its sum.

        A caption that is told word by word would fetch these large weights from memory for every word.

        Args:
            features: (images, positions, encoder_dim).

        Returns:
            Their share of the LSTM's gates and, with a deep output, of what the output layer reads:
            (images, positions, 4 decoder_dim [+ embed_size]).
        """
        _, context_weight = self._input_weights()
        gates = F.linear(features, context_weight)
        return torch.cat([gates, self.output_z(features)], dim=-1) if self.config.deep_output else gates

    def _input_weights(self) -> tuple[torch.Tensor, ...]:
        """The LSTM's weights for the word and for the context."""
        weight, embed_size = self.lstm_cell.weight_ih, self.config.embed_size
        return weight[:, :embed_size], weight[:, embed_size:]


# What follows uses inner parts of transformers, as they are in 5.4 to 5.24, and nothing else in this file does: when
# one of them is renamed, this is the place to change.

# The name of the state in `generate` and in outputs: `past_key_values` up to 5.23. Later versions warn of the old name.
STATE = "cache" if "cache" in Seq2SeqLMOutput.__dataclass_fields__ else "past_key_values"


class LSTMState(CacheLayerMixin):
    """h and c under the names that the library's caches use (`keys`, `values`), so that it reorders them itself.

    A beam that overtakes another must take its state along: `Cache.reorder_cache` does that for these two tensors.
    """

    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

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


class ShowAttendCache(Cache):
    """What `generate` carries from step to step: the LSTM's state, and of attention what never changes."""

    attention_keys: torch.Tensor
    attention_values: torch.Tensor

    def __init__(self) -> None:
        self.lstm = LSTMState()
        super().__init__(layers=[self.lstm])

    @property
    def state(self) -> tuple[torch.Tensor, torch.Tensor]:
        """h and c, (captions, decoder_dim) each."""
        h, c = self.lstm.keys, self.lstm.values
        assert h is not None and c is not None, "the cache is empty"
        return h, c

    def remember(self, h: torch.Tensor, c: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, steps: int) -> None:
        self.update(h, c, layer_idx=0)
        self.lstm.steps += steps
        # (images, positions, attention_dim), and (images, positions, ...): beams of one image share them
        self.attention_keys, self.attention_values = keys, values


class ShowAttendGenerationMixin(GenerationMixin):
    """What `generate` has to know of a model whose state is an LSTM's."""

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: torch.Tensor, encoder_outputs: Any = None, use_cache: bool | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        # What `forward` takes, and none of the arguments that others of the library's models take as well. Of the
        # tokens only those that the state has not read.
        state = kwargs.get(STATE)
        unread = input_ids if state is None else input_ids[:, state.get_seq_length() :]
        return {"decoder_input_ids": unread, "encoder_outputs": encoder_outputs, "use_cache": use_cache, STATE: state}

    def _expand_inputs_for_generation(  # type: ignore[override]
        self, expand_size: int = 1, is_encoder_decoder: bool = True, input_ids: Any = None, **model_kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        # Beams and samples multiply the captions and not the images: the decoder shares an image's features among
        # its captions, so no copy is made of them.
        return input_ids.repeat_interleave(expand_size, dim=0), model_kwargs

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the cache is made by `forward`


class ShowAttendPreTrainedModel(PreTrainedModel):
    config_class = ShowAttendConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    _no_split_modules = ["ShowAttendEncoder", "ShowAttendDecoder"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but weights are read from safetensors alone: a pickle can run code when it is loaded.

        Raises:
            OSError: If there are none, or they could not be downloaded.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs | {"use_safetensors": True})
        except OSError as error:
            if "model.safetensors" in str(error):
                reason = "has no model.safetensors, and other weights are not read, because a pickle can run code"
            elif error.__cause__ is not None and not isinstance(error.__cause__, OSError):
                reason = f"could not be downloaded ({error.__cause__}): try again"
            else:
                raise
            raise OSError(f"{pretrained_model_name_or_path} {reason}.") from error

    def _init_weights(self, module: nn.Module) -> None:
        # torch's own initialisation, as in the write-up; transformers has guarded its functions, so that weights
        # which were loaded stay. A BatchNorm writes its statistics in place, and is left to transformers.
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding | nn.LSTMCell):
            module.reset_parameters()
        else:
            super()._init_weights(module)


class ShowAttendForConditionalGeneration(ShowAttendPreTrainedModel, ShowAttendGenerationMixin):
    """The captioner: [`ShowAttendEncoder`] and [`ShowAttendDecoder`], with transformers' `generate`."""

    accepts_loss_kwargs = True  # Trainer then passes `num_items_in_batch`

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

    def load_encoder_weights(self, weights: str | Path = "IMAGENET1K_V1") -> None:
        """Start the encoder from a trained ResNet.

        Args:
            weights: A name of torchvision's (`IMAGENET1K_V1`, `IMAGENET1K_V2`, `DEFAULT`), which is downloaded once,
                or a file with a torchvision `state_dict` (`.safetensors`, or `.pth` without pickled code). Weights of
                the original ResNet, as in Caffe and Keras, need `stride_in_1x1=True` in the config.

        Raises:
            ValueError: If the name is unknown or the file does not hold this ResNet.
            OSError: If there is no such file or the download fails.
        """
        name = self.config.encoder_name
        path = Path(weights)
        if path.suffix in (".safetensors", ".pth", ".pt", ".bin"):
            if not path.is_file():
                raise FileNotFoundError(f"The encoder's weights {path} do not exist.")
            try:
                state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
            except Exception as error:  # torch's own message advises to load a pickle with code in it
                raise ValueError(f"{path} is not a readable file of tensors alone.") from error
        else:
            try:
                state = torchvision.models.get_model_weights(name)[str(weights)].get_state_dict(check_hash=True)
            except KeyError:
                names = ", ".join(torchvision.models.get_model_weights(name).__members__)
                raise ValueError(f"{weights!r} is neither a file of weights nor one of {names}.") from None
            except (OSError, RuntimeError) as error:  # no connection; a damaged download
                raise OSError(
                    f"torchvision's {weights} weights of {name} could not be downloaded ({error}): name a file instead."
                ) from error
        resnet = torchvision.models.get_model(name, weights=None)
        try:
            # The classifier is not used and may be absent or of another size.
            fc = {f"fc.{key}": value for key, value in resnet.fc.state_dict().items()}
            resnet.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")} | fc)
        except (RuntimeError, AttributeError) as error:
            raise ValueError(f"{weights} does not hold the torchvision state dict of a {name}.") from error
        self.encoder.resnet.load_state_dict(nn.Sequential(*list(resnet.children())[:-2]).state_dict())

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
        skip_logits: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Seq2SeqLMOutput:
        """Predict the next word piece after every piece of `decoder_input_ids`.

        Args:
            pixel_values: (images, 3, height, width).
            image_features: In their place, precomputed features, as [`ShowAttendEncoder.frozen_features`] gives
                them: (images, positions, encoder_dim).
            encoder_outputs: Or the encoder's output, whose first entry is (images, positions, encoder_dim).
            decoder_input_ids: (captions, steps), each starting with `[CLS]`; made from `labels` if absent. There may
                be several captions for each image: then those of the first image come first.
            labels: (captions, steps), the pieces after `[CLS]`, the last of them `[SEP]`; -100 is ignored.
            past_key_values, cache: The state to go on from, under either of the names that transformers has for it.
            use_cache: Whether to return the state after the last step.
            num_items_in_batch: Divide the summed loss by this and not by the number of labels here, so that the
                losses of several small batches add up to the loss of one large batch.
            skip_logits: Compute the logits of real labels only, for the loss, and return none.
            output_attentions: Ignored: the attention is always returned, as it is computed in any case.
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
        state = cache if cache is not None else past_key_values
        if use_cache and state is None:
            state = ShowAttendCache()

        outputs, attentions = self.decoder(features, decoder_input_ids, state)
        outputs = self.decoder.drop(outputs)

        loss, logits = None, None
        if labels is None or not skip_logits:
            logits = self.decoder.fcn(outputs)  # (captions, steps, vocab_size)
        if labels is not None:
            real = labels != -100  # (captions, steps)
            real_logits = logits[real] if logits is not None else self.decoder.fcn(outputs[real])
            loss = self._loss(real_logits, labels[real], attentions, real, num_items_in_batch)
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
        labels: torch.Tensor,  # (labels,)
        attentions: torch.Tensor,  # (captions, steps, positions)
        real: torch.Tensor,  # (captions, steps)
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        smoothing = self.config.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="sum")
        if self.training and self.config.doubly_stochastic_penalty:
            looks = (attentions.float() * real.unsqueeze(-1)).sum(dim=1)  # (captions, positions)
            looks = looks[real.any(dim=1)]  # an empty row of a padded batch is no caption
            loss = loss + self.config.doubly_stochastic_penalty * (1 - looks).square().sum()
        return loss / (num_items_in_batch if num_items_in_batch is not None else max(len(labels), 1))

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
        _check_one_given(inputs, kwargs.get("pixel_values"), image_features, encoder_outputs)
        if image_features is not None:
            encoder_outputs = self.encoder(image_features=image_features)
        prefix = kwargs.get("decoder_input_ids")
        if prefix is not None and (prefix == self.config.pad_token_id).any():
            raise ValueError(
                "decoder_input_ids hold padding, which an LSTM cannot skip: give prefixes of one length, or one photo "
                "at a time."
            )
        if encoder_outputs is not None:
            kwargs["encoder_outputs"] = BaseModelOutput(last_hidden_state=encoder_outputs[0])
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]


def generated_attentions(outputs: Any) -> torch.Tensor:
    """Where each generated word piece looked, for greedy search, sampling and the surviving beams alike.

    Args:
        outputs: What `generate(..., return_dict_in_generate=True, output_attentions=True)` returned.

    Returns:
        (captions, generated pieces, positions). A row sums to one; rows after a caption's `[SEP]` are meaningless.
    """
    steps = [step[0][:, 0, -1] for step in outputs.cross_attentions]  # (beams, positions) each
    beams = getattr(outputs, "beam_indices", None)
    if beams is None:
        return torch.stack(steps, dim=1)
    # beam_indices[i, t] is the row whose prediction became piece t of caption i (-1 after its end)
    return torch.stack([step[beams[:, t].clamp(min=0)] for t, step in enumerate(steps[: beams.shape[1]])], dim=1)


ShowAttendForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
