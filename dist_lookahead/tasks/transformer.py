"""The Transformer that translates: an encoder, and a decoder that attends to it."""

from torch import Tensor, nn
from torch.nn import functional

from dist_lookahead.tasks.attention import Layer, Past, at_positions, new_embedding
from dist_lookahead.tasks.subwords import PAD


class Translator(nn.Module):
    """p(next target token | target tokens before, source). One matrix embeds source, target and the output.

    Args:
        types: number of tokens V, common to both languages.
        width: of the positions, even and a multiple of `heads`.
        heads: of the attention.
        layers: of the encoder, and as many of the decoder, >= 1.
        dropout: in all of them, in [0, 1).

    Raises:
        ValueError: the width is odd, or not a multiple of `heads`.

    Example:
        >>> import torch
        >>> model = Translator(300, width=8, heads=2, layers=1)
        >>> logits, encoded = model(torch.full((3, 6), 5), torch.full((3, 4), 5))
        >>> logits.shape, encoded.shape
        (torch.Size([3, 4, 300]), torch.Size([3, 6, 8]))

    Reference: arXiv 1706.03762, with layers that are normalised first.
    """

    def __init__(self, types: int, *, width: int = 512, heads: int = 8, layers: int = 6, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding, self.dropout = new_embedding(types, width), nn.Dropout(dropout)
        self.encoder = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.decoder = nn.ModuleList(Layer(width, heads, dropout, crossed=True) for _ in range(layers))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(
        self, source: Tensor, target: Tensor, encoded: Tensor | None = None, *, pasts: list[Past] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, T, V) of the tokens behind those of the target, and the encoded source (B, S, width).

        Args:
            source: (B, S), padded with PAD behind its end.
            target: (B, T), from BEGIN on; what is padded behind its end is seen by nothing before.
            encoded: the source as an earlier call has encoded it.
            pasts: what the decoder has read before, [] at first: the target is then the next token alone, (B, 1).
        """
        mask = (source != PAD)[:, None, None]
        if encoded is None:
            encoded = self._encoded(source, mask)
        if pasts is not None and not pasts:
            pasts.extend(Past() for _ in self.decoder)
        x = self.dropout(at_positions(target, self.embedding, pasts[0].length if pasts else 0))
        for layer, past in zip(self.decoder, pasts or [None] * len(self.decoder), strict=True):
            x = layer(x, causal=True, other=encoded, other_mask=mask, past=past)
        return functional.linear(self.decoder_norm(x), self.embedding), encoded

    def _encoded(self, source: Tensor, mask: Tensor) -> Tensor:
        x = self.dropout(at_positions(source, self.embedding))
        for layer in self.encoder:
            x = layer(x, mask=mask)
        return self.encoder_norm(x)
