"""The parts of a Transformer: attention, its layers, positions. Layers are normalised before, not after, each part."""

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

KeysValues = tuple[Tensor, Tensor]
"""What attention asks: keys and values, each (B, heads, S, width / heads)."""


@dataclass
class Past:
    """What a layer has read before, so that a sequence that grows is read once and not anew at each place.

    Args:
        own: of the places before.
        other: of the other sequence.
    """

    own: KeysValues | None = None
    other: KeysValues | None = None

    @property
    def length(self) -> int:
        """Places that have been read."""
        return 0 if self.own is None else self.own[0].shape[2]

    def append(self, new: KeysValues) -> KeysValues:
        """Add places behind the others, and return all."""
        if self.own is not None:
            new = torch.cat((self.own[0], new[0]), dim=2), torch.cat((self.own[1], new[1]), dim=2)
        self.own = new
        return new

    def choose(self, rows: Tensor) -> None:
        """Go on from these sequences, whose other sequences are those of the rows that they come to."""
        assert self.own is not None
        self.own = self.own[0][rows], self.own[1][rows]


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

    def read(self, seen: Tensor) -> KeysValues:
        """Return the keys and values of a sequence (B, S, width)."""
        key, value = self.key_value(seen).chunk(2, dim=2)
        return self._split(key), self._split(value)

    def forward(self, x: Tensor, seen: KeysValues, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Return (B, T, width).

        Args:
            x: (B, T, width), which asks.
            seen: what is asked, as `read` returns it.
            mask: (B, 1, 1, S), true where a position may be seen; None for all.
            causal: whether position t sees positions up to t only.
        """
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            self._split(self.query(x)), *seen, attn_mask=mask, dropout_p=dropout, is_causal=causal
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
        past: Past | None = None,
    ) -> Tensor:
        """Return (B, T, width).

        Args:
            x: (B, T, width); with a past, T is 1: the place behind those that it has read.
            mask: as in `Attention`.
            causal: as in `Attention`.
            other: the sequence that is attended to, for a layer that is `crossed`.
            other_mask: likewise of the other sequence.
            past: read and added to.
        """
        own = self.norm(x)
        new = self.attention.read(own)
        seen = new if past is None else past.append(new)
        x = x + self.dropout(self.attention(own, seen, mask=mask, causal=causal and past is None))
        if self.cross is not None and self.cross_norm is not None:
            assert other is not None
            there = past.other if past is not None and past.other is not None else self.cross.read(other)
            if past is not None:
                past.other = there
            x = x + self.dropout(self.cross(self.cross_norm(x), there, mask=other_mask))
        return x + self.dropout(self.feed_forward(x))


def at_positions(tokens: Tensor, embedding: Tensor, start: int = 0) -> Tensor:
    """Return sqrt(width) E[token] plus sines and cosines of the position, (B, T, width), for sequences of any length.

    Args:
        tokens: (B, T), int64.
        embedding: E, (types, width), of a standard deviation of width^-1/2 at first.
        start: position of the first token.

    Reference: arXiv 1706.03762, sections 3.4 and 3.5.
    """
    width = embedding.shape[1]
    places = torch.arange(start, start + tokens.shape[1], device=tokens.device, dtype=torch.float32)
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
