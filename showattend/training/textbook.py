"""The training step of tutorials and the write-up, on our model's parameters: the baseline for ours.

It computes the same loss, but also what [`ShowAttendForConditionalGeneration.forward`] saves: attention keys again at
every step, logits of padding, and steps after the end of the longest caption.
"""

import torch
from torch import nn

from modeling_showattend import ShowAttendForConditionalGeneration


def textbook_loss(
    model: ShowAttendForConditionalGeneration,
    image_features: torch.Tensor,
    labels: torch.Tensor,
    caption_length: int = 30,
) -> torch.Tensor:
    """The mean cross entropy of the labels, with teacher forcing; only for models without `deep_output`.

    Args:
        image_features: (batch, positions, encoder_dim).
        labels: (batch, steps), -100 where padded, at most `caption_length` - 1 steps.
        caption_length: All captions are padded to this many tokens, including `[CLS]` and `[SEP]`.
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


@torch.inference_mode()
def textbook_caption(
    model: ShowAttendForConditionalGeneration, pixel_values: torch.Tensor, num_beams: int = 1, max_length: int = 30
) -> list[int]:
    """Caption one image (1, 3, height, width) with the tutorials' beam search: the tokens from `[CLS]` to `[SEP]`.

    It recomputes all projections at every step, and compares captions by their summed log probabilities, without a
    length penalty.
    """
    decoder, attention, end = model.decoder, model.decoder.attention, model.config.eos_token_id
    image_features = model.encoder(pixel_values=pixel_values)[0]  # (1, positions, encoder_dim)
    mean = image_features.mean(dim=1)
    h, c = decoder.init_h(mean), decoder.init_c(mean)
    captions = torch.full((1, 1), model.config.bos_token_id)
    scores = torch.zeros(1, 1)
    finished: list[tuple[float, list[int]]] = []
    while captions.shape[1] < max_length and len(finished) < num_beams:
        beams = len(captions)
        features = image_features.expand(beams, -1, -1)
        hidden = torch.tanh(attention.U(features) + attention.W(h).unsqueeze(1))
        weights = attention.A(hidden).squeeze(2).softmax(dim=1)  # (beams, positions)
        context = (features * weights.unsqueeze(2)).sum(dim=1)  # (beams, encoder_dim)
        if model.config.context_gate:
            context = torch.sigmoid(decoder.f_beta(h)) * context
        word = decoder.embedding(captions[:, -1])
        h, c = decoder.lstm_cell(torch.cat([word, context], dim=1), (h, c))
        output = h
        if model.config.deep_output:
            output = torch.tanh(word + decoder.output_h(h) + decoder.output_z(context))
        total = scores + decoder.fcn(output).log_softmax(dim=1)  # (beams, vocab_size)
        best, places = total.flatten().topk(num_beams - len(finished))
        rows, words = places // total.shape[1], places % total.shape[1]
        captions = torch.cat([captions[rows], words.unsqueeze(1)], dim=1)
        ended = words == end
        finished += zip(best[ended].tolist(), captions[ended].tolist(), strict=True)
        captions, scores, h, c = captions[~ended], best[~ended].unsqueeze(1), h[rows][~ended], c[rows][~ended]
    finished += zip(scores.flatten().tolist(), captions.tolist(), strict=True) if not finished else []
    return max(finished)[1]
