"""In what code values travel in an exact average.

Agents send how far they have come since the level's last sync, not where they are: that is small, and so is its
rounding. The slow weights r of that sync are the same on all agents. Agent i of n has weights x_i and a residual e_i:
what earlier codes have lost of its way. The owner of part p of n, agent p, has a residual f_p of the mean as well.

    c_i = encode(x_i - r + e_i)                      each owner gets its part
    e_i <- (x_i - r + e_i) - decode(c_i)
    m_p = (sum_i decode(c_i)_p) / n + f_p            by the owner of part p, in the order of ranks
    c_p = encode(m_p)                                everybody gets all parts
    f_p <- m_p - decode(c_p)
    mean := r + decode(c)

Everybody decodes the same bytes, so that all agents end with the same bits. What a code has lost is not gone: it is
sent with the next sync, and over many syncs the means add up to what they should be, up to the last residuals:

    sum_t decode(c)_t = sum_t mean_i (x_i - r)_t - mean_i e_i - f        (e = f = 0 in the beginning)

With `error_feedback=False` there are no residuals: e = f = 0 always. Decoded values are float32. Sums and residuals
have the precision of the slow weights: in float64 the residuals also hold what float32 has lost.

A code works on rows (R, D), each for itself; its length in bytes depends on D alone. Values that are not finite arrive
as such, never as numbers: how far they spread is said with each code.

Reference: arXiv 1901.09847 (error feedback), 1905.05957 (in both directions), there for gradients.
"""

import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

Rounding = Literal["nearest", "stochastic"]
Precision = Literal["fp32", "bf16", "fp16"]
PIECE = 2**18  # values that are encoded or decoded at a time: what that takes besides stays in cache
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Cast:
    """Numbers of fewer bytes: two for each value in half precision, half of float32's.

    Args:
        dtype: "bf16", 8 bits of precision with the range of float32, or "fp16", 11 bits for sizes from 6e-8 to 65504.
            "fp32" halves float64 weights; float32 ones it sends as they are, which costs memory and saves nothing.
            Finite values beyond the range are sent as its end; what is missing goes to the residual.
        error_feedback: add what the code has lost to what is sent next time.

    Infinities and NaN arrive where they were.

    Example:
        >>> Cast("bf16").decode(Cast("bf16").encode(torch.tensor([[1.0, 1.001]])), 2)
        tensor([[1., 1.]])
    """

    dtype: Precision = "bf16"
    error_feedback: bool = True

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Precision):
            raise ValueError(f"Cast.dtype={self.dtype!r} must be one of {', '.join(get_args(Precision))}")

    def nbytes(self, length: int) -> int:
        """Return the bytes of a row of `length` values."""
        return _DTYPES[self.dtype].itemsize * length

    def encode(self, rows: Tensor, draw: tuple[int, ...] = ()) -> Tensor:
        """Return the code of rows (R, D), (R, nbytes(D)) uint8."""
        dtype = _DTYPES[self.dtype]
        code, end = torch.empty(rows.shape, dtype=dtype, device=rows.device), torch.finfo(dtype).max
        for part in _pieces(rows.shape):
            values = rows[:, part].float()
            code[:, part] = torch.where(values.isinf(), values, values.clamp(-end, end))
        return code.view(torch.uint8)

    def decode(self, code: Tensor, length: int) -> Tensor:
        """Return the rows (R, length) float32 of a code (R, nbytes(length))."""
        return _decode(self, code, length)

    def accumulate(self, code: Tensor, rows: Tensor, sign: int = 1) -> None:
        """Add the decoded rows to other ones (R, length), or subtract them, in place."""
        size = _DTYPES[self.dtype].itemsize
        for part in _pieces(rows.shape):
            values = _as_numbers(code[:, part.start * size : part.stop * size], _DTYPES[self.dtype])
            rows[:, part].add_(values.float(), alpha=sign)


@dataclass(frozen=True)
class Quantised:
    """Whole numbers on the scale of a block's largest value: bits / 8 bytes for each value and 4 for each block.

        s = max |x| of the block (float32),   q = round(top x / s),   decode: s q / top,   top = 2^(bits - 1) - 1

    The error of a value is at most s / (2 top) if rounded to the nearest, s / top at random (and float32's rounding).

    Args:
        bits: 8, or 4, which are packed two to a byte.
        block: values that share a scale, >= 1.
        rounding: "nearest", or "stochastic": up or down at random, with the value as its mean.
        error_feedback: add what the code has lost to what is sent next time.
        seed: of stochastic rounding. The draws depend on it, the agent, the level and the number of its sync, and on
            nothing else, so that a resumed run draws the same.

    A block with a value that is not finite arrives as NaN, all of it.

    Example:
        >>> code = Quantised(bits=4, block=2)
        >>> code.decode(code.encode(torch.tensor([[7.0, 3.2, -0.1, 0.0]])), 4)
        tensor([[ 7.0000,  3.0000, -0.1000,  0.0000]])

    Reference: arXiv 2110.02861 (scales by block), 1610.02132 (stochastic rounding).
    """

    bits: int = 8
    block: int = 1024
    rounding: Rounding = "nearest"
    error_feedback: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"Quantised.bits={self.bits} must be 4 or 8")
        if self.block < 1 or self.block != int(self.block):
            raise ValueError(f"Quantised.block={self.block} must be a whole number of values, at least 1")
        if self.rounding not in get_args(Rounding):
            raise ValueError(f"Quantised.rounding={self.rounding!r} must be one of {', '.join(get_args(Rounding))}")
        if self.seed and self.rounding == "nearest":
            raise ValueError(
                f"Quantised.seed={self.seed} has no effect with rounding='nearest': use 'stochastic' or leave it out"
            )

    @property
    def top(self) -> int:
        """The largest whole number."""
        return 2 ** (self.bits - 1) - 1

    def nbytes(self, length: int) -> int:
        """Return the bytes of a row of `length` values."""
        return 4 * self._blocks(length) + -(-length * self.bits // 8)

    def encode(self, rows: Tensor, draw: tuple[int, ...] = ()) -> Tensor:
        """Return the code of rows (R, D), (R, nbytes(D)) uint8; `draw` are the numbers of this use, for its seed."""
        length, random = rows.shape[1], self._random(rows.device, draw)
        code = torch.empty(len(rows), self.nbytes(length), dtype=torch.uint8, device=rows.device)
        for part in _pieces(rows.shape, 2 * self.block):
            scale, packed = self._encode(rows[:, part].float(), random)
            scales, whole = self._places(part, length)
            code[:, scales], code[:, whole] = scale, packed
        return code

    def decode(self, code: Tensor, length: int) -> Tensor:
        """Return the rows (R, length) float32 of a code (R, nbytes(length))."""
        return _decode(self, code, length)

    def accumulate(self, code: Tensor, rows: Tensor, sign: int = 1) -> None:
        """Add the decoded rows to other ones (R, length), or subtract them, in place."""
        length = rows.shape[1]
        for part in _pieces(rows.shape, 2 * self.block):
            scales, whole = (code[:, place] for place in self._places(part, length))
            steps = whole.view(torch.int8) if self.bits == 8 else unpack(whole)[:, : part.stop - part.start]
            # As numbers first: torch divides whole ones much more slowly.
            values = self._in_blocks(steps.float().div_(self.top))
            values = values.mul_(_as_numbers(scales, torch.float32)[:, :, None])
            rows[:, part].add_(values.flatten(1)[:, : part.stop - part.start], alpha=sign)

    def _encode(self, rows: Tensor, random: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return the bytes of the scales, and those of the values."""
        blocks = self._in_blocks(rows)
        largest = blocks.abs().amax(dim=2, keepdim=True)
        scale = largest.where(largest.isfinite(), math.nan)
        # First divided, then multiplied: top / scale overflows for the smallest scales. 0 / 0 becomes 0 below.
        steps = (blocks / scale).mul_(self.top)
        if random:
            steps.add_(torch.rand(steps.shape, generator=random, device=steps.device)).floor_()
        else:
            steps.round_()
        whole = steps.nan_to_num_(0.0).clamp_(-self.top, self.top).to(torch.int8).flatten(1)[:, : rows.shape[1]]
        packed = whole.contiguous().view(torch.uint8) if self.bits == 8 else pack(whole)
        return scale.flatten(1).contiguous().view(torch.uint8), packed

    def _places(self, part: slice, length: int) -> tuple[slice, slice]:
        """Return where in a row's code the scales and the values of a piece lie; it begins at an even block."""
        edge = 4 * self._blocks(length)
        first, last = part.start * self.bits // 8, -(-part.stop * self.bits // 8)
        return slice(4 * (part.start // self.block), 4 * self._blocks(part.stop)), slice(edge + first, edge + last)

    def _random(self, device: torch.device, draw: tuple[int, ...]) -> torch.Generator | None:
        if self.rounding == "nearest":
            return None
        numbers = hashlib.blake2b(repr((self.seed, draw)).encode(), digest_size=4).digest()
        return torch.Generator(device=device).manual_seed(int.from_bytes(numbers))

    def _blocks(self, length: int) -> int:
        return -(-length // self.block)

    def _in_blocks(self, rows: Tensor) -> Tensor:
        """Cut rows (R, D) into blocks (R, B, block), the last one filled up with zeros."""
        blocks = self._blocks(rows.shape[1])
        missing = blocks * self.block - rows.shape[1]
        whole = pad(rows, (0, missing)) if missing else rows  # padding with nothing makes a copy
        return whole.view(len(rows), blocks, self.block)


@dataclass(frozen=True)
class TopK:
    """The largest values alone, 8 bytes for each: its place (int32) and itself (float32); the others arrive as 0.

    Args:
        fraction: of the values of a part that are sent, 0 < fraction < 1/2, rounded up: half of them take as many
            bytes as all of them as they are.
        error_feedback: add what was not sent to what is sent next time. Without it most of a run is never sent.

    NaN and infinities count as larger than all else: they are sent first, and arrive where they were.

    Example:
        >>> code = TopK(0.25)
        >>> code.decode(code.encode(torch.tensor([[0.1, -3.0, 2.0, 0.0]])), 4)
        tensor([[ 0., -3.,  0.,  0.]])

    Reference: arXiv 1809.07599.
    """

    fraction: float
    error_feedback: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 0.5:
            raise ValueError(
                f"TopK.fraction={self.fraction} must be above 0 and below 0.5: half of the values with their places "
                "take as many bytes as all values do without a codec"
            )

    def kept(self, length: int) -> int:
        """Return how many of `length` values are sent."""
        return math.ceil(self.fraction * length)

    def nbytes(self, length: int) -> int:
        """Return the bytes of a row of `length` values."""
        return 8 * self.kept(length)

    def encode(self, rows: Tensor, draw: tuple[int, ...] = ()) -> Tensor:
        """Return the code of rows (R, D), (R, nbytes(D)) uint8."""
        values = rows.float()
        size = values.abs().nan_to_num(nan=math.inf)
        places = size.topk(self.kept(rows.shape[1]), dim=1, sorted=False).indices
        return torch.cat([part.view(torch.uint8) for part in (places.int(), values.gather(1, places))], dim=1)

    def decode(self, code: Tensor, length: int) -> Tensor:
        """Return the rows (R, length) float32 of a code (R, nbytes(length))."""
        return _decode(self, code, length)

    def accumulate(self, code: Tensor, rows: Tensor, sign: int = 1) -> None:
        """Add the decoded rows to other ones (R, length), or subtract them, in place."""
        places, values = code.chunk(2, dim=1)
        values = _as_numbers(values, torch.float32).to(rows.dtype) * sign
        rows.scatter_add_(1, _as_numbers(places, torch.int32).long(), values)


Codec = Cast | Quantised | TopK


def _decode(codec: Codec, code: Tensor, length: int) -> Tensor:
    rows = torch.zeros(len(code), length, device=code.device)
    codec.accumulate(code, rows)
    return rows


def _pieces(shape: Sequence[int], step: int = 1) -> Iterator[slice]:
    """Cut the columns of rows into pieces that begin at multiples of `step`, of about `PIECE` values."""
    rows, length = shape
    width = max(PIECE // max(rows, 1) // step, 1) * step
    for start in range(0, length, width):
        yield slice(start, min(start + width, length))


def pack(whole: Tensor) -> Tensor:
    """Pack whole numbers from -8 to 7, (R, D) int8, two to a byte, (R, ceil(D / 2)) uint8.

    Example:
        >>> unpack(pack(torch.tensor([[-8, 7, 1]], dtype=torch.int8)))
        tensor([[-8,  7,  1,  0]], dtype=torch.int8)
    """
    pairs = _halves((pad(whole, (0, whole.shape[1] % 2)) + 8).view(torch.int16))
    return (pairs | (pairs >> 4)).to(torch.uint8)  # of each pair the lower byte


def unpack(packed: Tensor) -> Tensor:
    """Return the whole numbers, (R, 2 B) int8, of packed ones (R, B): a last one of 0 where their number was odd."""
    pairs = packed.to(torch.int16)
    return _halves((pairs | (pairs << 4)) & 0x0F0F).view(torch.int8) - 8


def _halves(pairs: Tensor) -> Tensor:
    """Return pairs of bytes with the first of them as the lower half, whatever the machine's order is."""
    if sys.byteorder == "little":
        return pairs
    return pairs.view(torch.uint8).unflatten(1, (-1, 2)).flip(2).flatten(1).view(torch.int16)


def _as_numbers(code: Tensor, dtype: torch.dtype) -> Tensor:
    """View bytes as numbers; in memory of their own, since those of a row need not begin where a number may."""
    return code.clone(memory_format=torch.contiguous_format).view(dtype)
