"""Codes by themselves: what arrives of what was sent, in how many bytes."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dist_lookahead import Cast, Exact, Quantised, TopK
from dist_lookahead.averaging.codec import Codec, pack, unpack

EPS = 2.0**-23
LEAST = 2.0**-149  # the smallest float32
SIZES = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
ROWS = st.integers(1, 40).flatmap(
    lambda length: st.lists(st.lists(SIZES, min_size=length, max_size=length), min_size=1, max_size=3)
)
QUANTISED = st.builds(
    Quantised,
    bits=st.sampled_from((4, 8)),
    block=st.sampled_from((1, 3, 8, 1024)),
    rounding=st.sampled_from(("nearest", "stochastic")),
)
CASTS = st.sampled_from((Cast("fp32"), Cast("bf16"), Cast("fp16")))
TOP_KS = st.builds(TopK, st.sampled_from((0.01, 0.2, 0.49)))
EVERY: dict[str, Codec] = {
    "bf16": Cast("bf16"),
    "fp16": Cast("fp16"),
    "8 bit": Quantised(8, block=8),
    "4 bit": Quantised(4, block=8),
    "4 bit at random": Quantised(4, block=8, rounding="stochastic"),
    "top k": TopK(0.2),
}
each_codec = pytest.mark.parametrize("codec", EVERY.values(), ids=EVERY)


def there_and_back(codec: Codec, rows: Tensor) -> Tensor:
    code = codec.encode(rows, (0,))
    assert (code.dtype, code.shape) == (torch.uint8, (len(rows), codec.nbytes(rows.shape[1])))
    arrived = codec.decode(code, rows.shape[1])
    assert (arrived.dtype, arrived.shape) == (torch.float32, rows.shape)
    return arrived


@settings(deadline=None, max_examples=200)
@given(codec=QUANTISED, rows=ROWS)
def test_whole_numbers_are_at_most_a_step_away(codec: Quantised, rows: list[list[float]]) -> None:
    """Breaks for zeros, subnormal and huge values where a scale under- or overflows, and at a block's ragged end."""
    sent = torch.tensor(rows)
    arrived = there_and_back(codec, sent)
    for x, y in zip(sent.split(codec.block, dim=1), arrived.split(codec.block, dim=1), strict=True):
        scale = x.double().abs().amax(dim=1, keepdim=True)
        step = scale / codec.top * (1 if codec.rounding == "stochastic" else 0.5)
        assert ((x.double() - y.double()).abs() <= step + 4 * EPS * scale + LEAST).all()


@settings(deadline=None, max_examples=200)
@given(codec=CASTS, rows=ROWS)
def test_half_precision_rounds_and_ends_where_its_range_does(codec: Cast, rows: list[list[float]]) -> None:
    sent = torch.tensor(rows)
    kind = torch.finfo({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[codec.dtype])
    within = sent.double().clamp(-kind.max, kind.max)
    wrong = (there_and_back(codec, sent).double() - within).abs()
    assert (wrong <= within.abs() * kind.eps / 2 + kind.tiny * kind.eps).all()


@settings(deadline=None, max_examples=200)
@given(codec=TOP_KS, rows=ROWS)
def test_the_largest_values_arrive_as_they_are_and_the_others_as_zero(codec: TopK, rows: list[list[float]]) -> None:
    for x, y in zip(torch.tensor(rows), there_and_back(codec, torch.tensor(rows)), strict=True):
        kept = y != 0
        assert torch.equal(x[kept], y[kept])
        largest = x.abs().sort(descending=True).values[: codec.kept(len(x))]
        assert torch.equal(y.abs().sort(descending=True).values[: len(largest)], largest)


@given(whole=st.lists(st.integers(-8, 7), min_size=1, max_size=9))
def test_four_bits_are_packed_exactly(whole: list[int]) -> None:
    numbers = torch.tensor([whole, whole[::-1]], dtype=torch.int8)
    packed = pack(numbers)
    assert packed.shape == (2, math.ceil(len(whole) / 2))
    assert torch.equal(unpack(packed)[:, : len(whole)], numbers)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_at_random_has_the_value_as_its_mean(bits: int) -> None:
    """Within 5 sigma; rounding to the nearest is 30 to 500 sigma away."""
    codec, number = Quantised(bits, block=2**17, rounding="stochastic"), 2**17
    for value in (0.3, -0.7):
        sent = torch.full((1, number), value)
        sent[0, 0] = 1.0
        arrived = there_and_back(codec, sent)[0, 1:].double()
        share = value * codec.top % 1
        sigma = math.sqrt(share * (1 - share) / len(arrived)) / codec.top
        assert abs(arrived.mean().item() - value) < 5 * sigma + EPS
        nearest = there_and_back(Quantised(bits, block=2**17), sent)[0, 1]
        assert abs(nearest.item() - value) > 20 * sigma, "the case would show nothing"


def test_draws_depend_on_the_seed_and_on_the_use_alone() -> None:
    """Breaks if a resumed run drew others, or if two agents, syncs or buckets drew the same."""
    rows = torch.linspace(-1, 1, 100)[None]
    one, other = (Quantised(4, rounding="stochastic", seed=seed) for seed in (0, 1))
    assert torch.equal(one.encode(rows, (0, 3, 0, 1, 0)), one.encode(rows, (0, 3, 0, 1, 0)))
    assert not torch.equal(one.encode(rows, (0, 3, 0, 1, 0)), other.encode(rows, (0, 3, 0, 1, 0)))
    assert not torch.equal(one.encode(rows, (0, 3, 0, 1, 0)), one.encode(rows, (0, 4, 0, 1, 0)))


@pytest.mark.parametrize(
    ("codec", "length", "nbytes"),
    [
        (Cast("bf16"), 1024, 2048),
        (Quantised(8), 1024, 1028),
        (Quantised(8), 1025, 1033),
        (Quantised(4), 1024, 516),
        (Quantised(4), 7, 8),
        (TopK(0.01), 1000, 80),
        (TopK(0.01), 1001, 88),
    ],
)
def test_bytes_are_as_promised(codec: Codec, length: int, nbytes: int) -> None:
    assert codec.nbytes(length) == nbytes
    there_and_back(codec, torch.ones(1, length))


@each_codec
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_arrives_as_a_number(codec: Codec, bad: float) -> None:
    """Breaks if a diverged agent could pass for a sound one. Other rows, and other blocks, are as they were."""
    rows = torch.linspace(-1, 1, 34).view(2, 17).clone()
    rows[1, 9] = bad
    arrived = there_and_back(codec, rows)
    assert not arrived[1, 9].isfinite()
    assert torch.equal(arrived[0], there_and_back(codec, rows[:1])[0]) or getattr(codec, "rounding", "") == "stochastic"
    assert arrived[0].isfinite().all()
    assert arrived[1, :8].isfinite().all()
    if isinstance(codec, Quantised):
        assert arrived[1, 8:16].isnan().all(), "the block has no scale"


@each_codec
def test_rows_are_coded_each_for_itself(codec: Codec) -> None:
    """Breaks if an owner needed the other parts to read its own."""
    rows = torch.randn(3, 21, generator=torch.Generator().manual_seed(0))
    code = codec.encode(rows, (0,))
    assert torch.equal(codec.decode(code[1:2], 21)[0], codec.decode(code, 21)[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cast("int8"), "Cast.dtype='int8' must be one of fp32, bf16, fp16"),  # pyright: ignore[reportArgumentType] - that is the test
        (lambda: Quantised(3), "Quantised.bits=3 must be 4 or 8"),
        (lambda: Quantised(block=0), "Quantised.block=0 must be a whole number of values, at least 1"),
        (lambda: Quantised(rounding="up"), "must be one of nearest, stochastic"),  # pyright: ignore[reportArgumentType] - that is the test
        (lambda: Quantised(seed=3), "seed=3 has no effect with rounding='nearest'"),
        (lambda: TopK(0.0), "TopK.fraction=0.0 must be above 0 and below 0.5"),
        (lambda: TopK(0.5), "as many bytes as all values do without a codec"),
        (lambda: Exact(shard=True, codec=Cast()), "which every agent must have whole"),
        (lambda: Exact(codec="int8"), r"Exact.codec='int8' must be None, or one of Cast\(\)"),  # pyright: ignore[reportArgumentType] - that is the test
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
