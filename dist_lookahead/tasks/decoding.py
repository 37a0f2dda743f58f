"""Translations by beam search."""

import torch
from torch import Tensor, nn

from dist_lookahead.tasks.attention import Past
from dist_lookahead.tasks.subwords import BEGIN, END, PAD


@torch.no_grad()
def beam_search(model: nn.Module, source: Tensor, *, beam: int = 1, length_penalty: float = 0.6) -> Tensor:
    """Return the likeliest translations that are found, (B, T), END behind each and PAD behind that.

    Partial translations y are ranked by log p(y) / ((5 + |y|) / 6)^length_penalty. A beam of 1 is greedy decoding.

    Args:
        model: as `Translator`, in evaluation mode.
        source: (B, S), padded with PAD.
        beam: partial translations of a sentence that are kept, >= 1.
        length_penalty: 0 for the plain likelihood, which prefers short translations.

    Reference: arXiv 1609.08144, eq. 14, with sentences of at most 1.5 times the source and 10 more tokens.
    """
    sentences = len(source)
    # Of each its own, not the batch's: what is measured must not depend on how many are decoded side by side.
    longest = (source != PAD).sum(1, keepdim=True) * 3 // 2 + 10
    _, encoded = model(source, source.new_full((sentences, 1), BEGIN))
    source, encoded = (part.repeat_interleave(beam, 0) for part in (source, encoded))
    prefixes = source.new_full((sentences * beam, 1), BEGIN)
    # At first all of a sentence's prefixes are the same one: it is extended once.
    scores = encoded.new_full((sentences, beam), -torch.inf, dtype=torch.float32)
    scores[:, 0] = 0.0
    ended = torch.zeros_like(scores, dtype=torch.bool)
    first = torch.arange(sentences, device=source.device)[:, None] * beam
    pasts: list[Past] = []
    while not (done := ended | (prefixes.shape[1] > longest)).all():
        logits, _ = model(source, prefixes[:, -1:], encoded, pasts=pasts)
        scores, chosen, tokens = _extended(scores, done, prefixes, logits[:, 0].float(), length_penalty)
        parents = (first + chosen).flatten()
        prefixes = torch.cat((prefixes[parents], tokens.view(-1, 1)), dim=1)
        for past in pasts if beam > 1 else ():
            past.choose(parents)
        ended = ended.gather(1, chosen) | (tokens == END)
    # They are in their order, but one that has not ended is taken only where none has.
    taken = (torch.arange(beam, device=source.device) + beam * ~ended).argmin(1)
    return prefixes[first[:, 0] + taken, 1:]


def _extended(
    scores: Tensor, done: Tensor, prefixes: Tensor, logits: Tensor, length_penalty: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, parents and last tokens, each (B, beam), of the best prefixes that are one token longer."""
    sentences, beam = scores.shape
    steps = logits.log_softmax(1).view(sentences, beam, -1)
    steps[:, :, [PAD, BEGIN]] = -torch.inf
    nothing = torch.full_like(steps, -torch.inf)
    nothing[:, :, PAD] = 0.0  # what is done, at its end or its largest length, goes on as it is
    steps = torch.where(done[:, :, None], nothing, steps)
    lengths = (prefixes[:, 1:] != PAD).sum(1).view(sentences, beam) + ~done
    totals = scores[:, :, None] + steps
    ranked = totals / ((5 + lengths[:, :, None]) / 6) ** length_penalty
    best = ranked.flatten(1).topk(beam).indices
    return totals.flatten(1).gather(1, best), best // steps.shape[2], best % steps.shape[2]
