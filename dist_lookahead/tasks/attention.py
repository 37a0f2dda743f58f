"""The parts of a Transformer: attention, its layers, positions. Layers are normalised before, not after, each part."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V in several heads.

    Args:
        width: of queries, keys and values together, a multiple of `heads`.
        heads: number of heads.
        dropout: probability of ignoring a position, in [0, 1).

    Reference: arXiv 1706.03762, section 3.2.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        self.heads, self.dropout = heads, dropout
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, seen: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Return (B, T, width).

        Args:
            x: (B, T, width), which asks.
            seen: (B, S, width), which is asked.
            mask: (B, 1, 1, S), true where a position may be seen; None for all.
            causal: whether position t sees positions up to t only.
        """
        query, key, value = (self._split(part) for part in (self.query(x), *self.key_value(seen).chunk(2, dim=2)))
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal
        )
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """x <- x + Attention(norm(x)), then to another sequence if there is one, then x <- x + W_2 gelu(W_1 norm(x)).

    Args:
        width: of the positions.
        heads: of the attention.
        dropout: of attention, and of what each part adds, in [0, 1).
        crossed: whether it attends to another sequence too.
    """

    def __init__(self, width: int, heads: int, dropout: float, *, crossed: bool = False) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.cross_norm = nn.LayerNorm(width) if crossed else None
        self.cross = Attention(width, heads, dropout) if crossed else None
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = nn.Sequential(
            OrderedDict(
                norm=nn.LayerNorm(width),
                up=nn.Linear(width, 4 * width),
                act=nn.GELU(),
                down=nn.Linear(4 * width, width),
            )
        )

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        other: Tensor | None = None,
        other_mask: Tensor | None = None,
    ) -> Tensor:
        """Return (B, T, width); `other` is the sequence that is attended to; masks are as in `Attention`."""
        own = self.norm(x)
        x = x + self.dropout(self.attention(own, own, mask=mask, causal=causal))
        if self.cross is not None and self.cross_norm is not None:
            assert other is not None
            x = x + self.dropout(self.cross(self.cross_norm(x), other, mask=other_mask))
        return x + self.dropout(self.feed_forward(x))


def at_positions(tokens: Tensor, embedding: Tensor) -> Tensor:
    """Return sqrt(width) E[token] plus sines and cosines of the position, (B, T, width), for sequences of any length.

    Args:
        tokens: (B, T), int64.
        embedding: E, (types, width), of a standard deviation of width^-1/2 at first.

    Reference: arXiv 1706.03762, sections 3.4 and 3.5.
    """
    width = embedding.shape[1]
    places = torch.arange(tokens.shape[1], device=tokens.device, dtype=torch.float32)
    rates = torch.exp(torch.arange(0, width, 2, device=tokens.device) * (-math.log(10_000.0) / width))
    angles = places[:, None] * rates
    return functional.embedding(tokens, embedding) * width**0.5 + torch.cat((angles.sin(), angles.cos()), dim=1)


def new_embedding(types: int, width: int) -> nn.Parameter:
    """Return E for `at_positions`, (types, width); the output may share it.

    A parameter of the model itself, not of a module inside it: FSDP2 gathers a module's weights for its forward alone,
    and these are used at both ends of the model.

    Raises:
        ValueError: the width is odd.
    """
    if width % 2:
        raise ValueError(f"width={width} must be even: half of the positions are sines, half cosines")
    return nn.Parameter(torch.randn(types, width) * width**-0.5)
