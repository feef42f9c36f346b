"""The training step as tutorials and the write-up have it, on our model's own parameters: the yardstick for ours.

It computes the same loss, and spends its time on what [`ShowAttendForConditionalGeneration.forward`] saves: attention
keys that are the same at every step, logits of padding, and steps after the end of the longest caption.
"""

import torch
from torch import nn

from .modeling_showattend import ShowAttendForConditionalGeneration


def textbook_loss(
    model: ShowAttendForConditionalGeneration,
    image_features: torch.Tensor,
    labels: torch.Tensor,
    caption_length: int = 30,
) -> torch.Tensor:
    """The mean cross entropy of the labels, teacher forced; only for models without `deep_output`.

    Args:
        image_features: (batch, positions, encoder_dim).
        labels: (batch, steps), -100 where padded, at most `caption_length` - 1 steps.
        caption_length: All captions are padded to this many word pieces, `[CLS]` and `[SEP]` counted.
    """
    pad = model.config.pad_token_id
    batch, steps = labels.shape
    captions = labels.new_full((batch, caption_length), pad)
    captions[:, 0] = model.config.bos_token_id
    captions[:, 1 : 1 + steps] = labels.masked_fill(labels == -100, pad)

    decoder, attention = model.decoder, model.decoder.attention
    words = decoder.embedding(captions)  # (batch, caption_length, embed_size)
    mean = image_features.mean(dim=1)
    h, c = decoder.init_h(mean), decoder.init_c(mean)
    logits = torch.zeros(batch, caption_length - 1, model.config.vocab_size)
    for step in range(caption_length - 1):
        hidden = torch.tanh(attention.U(image_features) + attention.W(h).unsqueeze(1))
        weights = attention.A(hidden).squeeze(2).softmax(dim=1)  # (batch, positions)
        context = (image_features * weights.unsqueeze(2)).sum(dim=1)  # (batch, encoder_dim)
        if model.config.context_gate:
            context = torch.sigmoid(decoder.f_beta(h)) * context
        h, c = decoder.lstm_cell(torch.cat([words[:, step], context], dim=1), (h, c))
        logits[:, step] = decoder.fcn(decoder.drop(h))
    return nn.CrossEntropyLoss(ignore_index=pad)(logits.flatten(0, 1), captions[:, 1:].flatten())
