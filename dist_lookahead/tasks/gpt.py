"""The Transformer language model: a decoder alone, as in GPT."""

from torch import Tensor, nn
from torch.nn import functional

from dist_lookahead.tasks.attention import Layer, at_positions, new_embedding


class TransformerLanguageModel(nn.Module):
    """Predict the next token by layers that see the tokens before it, within the window.

    As in GPT-2, but for positions as sines and cosines; input and output share their matrix.

    Args:
        types: number of tokens V.
        width: of the positions, even and a multiple of `heads`.
        heads: of the attention.
        layers: number of layers, >= 1.
        dropout: in all of them, in [0, 1).

    Raises:
        ValueError: the width is odd, or not a multiple of `heads`.

    Example:
        >>> import torch
        >>> model = TransformerLanguageModel(10, width=8, heads=2, layers=1)
        >>> model(torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, dtype=torch.bool))[0].shape
        torch.Size([3, 5, 10])

    Reference: Radford et al. 2019 (GPT-2); arXiv 1706.03762.
    """

    def __init__(self, types: int, *, width: int = 256, heads: int = 4, layers: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding, self.dropout = new_embedding(types, width), nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, T, V) of the tokens that follow, and no penalty; it remembers nothing, `first` or not."""
        x = self.dropout(at_positions(tokens, self.embedding))
        for layer in self.layers:
            x = layer(x, causal=True)
        return functional.linear(self.norm(x), self.embedding), x.new_zeros(())
